"""Grey items on black, put in front of random textures."""

from __future__ import annotations

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS

from poa_mm.datasets.compositing import background, paint, photographed, silhouette, tinted


@TRANSFORMS.register_module()
class RandomBackground(BaseTransform):
    """Tints a grey item on black and puts it in front of random textures, or leaves it as it is.

    With a background of its own, each view of an image has nothing but the item in common with the others; with
    the same one, self-supervision would rather learn the background.

    Required key: ``img``, uint8 ``(H, W)`` or ``(H, W, 1)``, bright on black, such as Fashion-MNIST's.
    Modified key: ``img``, uint8 ``(H, W, 3)``.

    Args:
        prob: Probability of a background; other images get three equal channels. Default: 0.5.

    Raises:
        ValueError: If ``prob`` is not in [0, 1], or an image has more than one channel.
    """

    def __init__(self, prob: float = 0.5):
        if not 0 <= prob <= 1:
            raise ValueError(f'prob {prob} is not in [0, 1]')
        self.prob = prob

    def transform(self, results: dict) -> dict:
        """Replace ``img`` of ``results``."""
        grey = results['img']
        if grey.ndim != 2 and grey.shape[2:] != (1,):
            raise ValueError(f'image of shape {grey.shape} is not grey')
        grey = np.ascontiguousarray(grey.reshape(grey.shape[:2]))
        results['img'] = self._compose(grey) if np.random.rand() < self.prob else np.repeat(grey[..., None], 3, axis=2)
        return results

    @staticmethod
    def _compose(grey: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng(np.random.randint(2**31))
        colour = tinted(rng, grey)
        image, _ = background(rng, grey.shape)
        paint(image, colour, silhouette(grey))
        return photographed(rng, image)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(prob={self.prob})'
