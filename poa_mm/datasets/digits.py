"""Handwritten digits that ship with scikit-learn."""

from __future__ import annotations

import numpy as np
from mmengine.registry import DATASETS
from mmpretrain.datasets import BaseDataset


@DATASETS.register_module()
class Digits(BaseDataset):
    """The 1,797 handwritten digits of scikit-learn, 8 x 8 pixels in 17 grey levels, without a download.

    Items hold ``img``, uint8 ``(8, 8, 3)`` in 0..255, and ``gt_label`` in 0..9. Every fifth image of
    each class is held out for ``'test'`` (364 images), the same in every run. For tuning, the remaining
    part is split once more in the same way: ``'fit'`` and ``'val'`` make up ``'train'``.

    Args:
        split: ``'train'``, ``'test'``, ``'fit'`` or ``'val'``. Default: ``'train'``.
        **kwargs: Of mmpretrain's ``BaseDataset``, such as ``pipeline``.

    Raises:
        ValueError: If the split is unknown.
    """

    METAINFO = {'classes': tuple('0123456789')}
    SPLITS = ('train', 'test', 'fit', 'val')

    def __init__(self, split: str = 'train', **kwargs):
        if split not in self.SPLITS:
            raise ValueError(f'split {split!r} is not one of {", ".join(self.SPLITS)}')
        self.split = split
        super().__init__(ann_file='', **kwargs)

    def load_data_list(self) -> list[dict]:
        """Images and labels of the split."""
        from sklearn.datasets import load_digits  # slow to import, and needed by this dataset only

        digits = load_digits()
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)
        chosen = np.arange(len(images))
        held_out = _every_fifth(digits.target)
        if self.split == 'test':
            chosen = chosen[held_out]
        else:
            chosen = chosen[~held_out]
            if self.split != 'train':
                in_val = _every_fifth(digits.target[chosen])
                chosen = chosen[in_val if self.split == 'val' else ~in_val]
        return [
            dict(img=np.repeat(images[i, :, :, None], 3, axis=2), gt_label=int(digits.target[i]), sample_idx=int(i))
            for i in chosen
        ]


def _every_fifth(labels: np.ndarray) -> np.ndarray:
    """Mark every fifth sample of each class, ``(N,)`` boolean."""
    marked = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        marked[np.flatnonzero(labels == label)[::5]] = True
    return marked
