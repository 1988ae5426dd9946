"""A folder of images."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from mmengine.logging import print_log
from mmengine.registry import DATASETS
from mmpretrain.datasets import CustomDataset

from .listing import SUFFIXES, Counts, class_folders, iter_images


@DATASETS.register_module()
class ImageFolder(CustomDataset):
    """mmpretrain's ``CustomDataset`` with rules of its own for what counts, and classes that go by name.

    Every file below the folder counts that :class:`~poa_mm.datasets.SafeLoadImageFromFile` can decode, whatever its
    case; hidden files and folders don't, nor do links that lead back to a folder above. The log says how many are
    used and how many left out, by suffix. The order is that of ``CustomDataset``.

    With labels, the folders below the root are the classes, in sorted order. To score on another folder than the one
    that was trained on, give both the same classes: a class without images then keeps its number.

    Args:
        data_prefix: The folder.
        with_label: Whether its folders are classes. Default: True.
        classes: Names of the classes in the order of their labels, which the folders are looked up in. Default: the
            names of the folders.
        class_root: Take ``classes`` from the folders in this one instead, which is not joined with ``data_root``.
        extensions: Suffixes of images. Default: all that can be decoded.
        **kwargs: Of ``CustomDataset``, such as ``data_root``, ``pipeline`` and ``ann_file``.

    Raises:
        ValueError: If there is no image, or a folder is none of the given classes.
        OSError: If a folder is missing or cannot be read.
    """

    def __init__(
        self,
        *args,
        classes: str | Sequence[str] | None = None,
        class_root: str | None = None,
        extensions: Sequence[str] = SUFFIXES,
        **kwargs,
    ):
        if class_root is not None:
            if classes is not None:
                raise ValueError('classes and class_root say the same: give one of them')
            classes = class_folders(class_root)
        super().__init__(*args, classes=classes, extensions=extensions, **kwargs)

    def _find_samples(self) -> list:
        """Paths relative to the folder; with labels, pairs of path and label."""
        counts = Counts()
        if self.with_label:
            samples = self._labelled(counts)
        else:
            samples = sorted(iter_images(self.img_prefix, counts, self.extensions))
        if not samples:
            raise ValueError(f'no images in {self.img_prefix}: {counts}')
        warn = counts.left_out or counts.loops
        print_log(f'{self.img_prefix}: {counts}', 'current', logging.WARNING if warn else logging.INFO)
        return samples

    def _labelled(self, counts: Counts) -> list[tuple[str, int]]:
        folders = class_folders(self.img_prefix, counts)
        classes = folders if self.CLASSES is None else list(self.CLASSES)
        if unknown := [folder for folder in folders if folder not in classes]:
            raise ValueError(
                f'{self.img_prefix} has the folders {", ".join(unknown)}, which are none of the classes '
                f'{", ".join(classes)}'
            )
        self._metainfo['classes'] = tuple(classes)
        self.folder_to_idx = {name: label for label, name in enumerate(classes)}
        samples, empty = [], [name for name in classes if name not in folders]
        for folder in folders:
            paths = sorted(iter_images(self.img_prefix, counts, self.extensions, folder))
            samples += [(path, self.folder_to_idx[folder]) for path in paths]
            if not paths:
                empty.append(folder)
        if empty:
            print_log(f'{self.img_prefix} has no images of {", ".join(sorted(empty))}', 'current', logging.WARNING)
        return samples
