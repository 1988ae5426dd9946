"""Crop, size, mirror image and turn of a small image in one step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS
from mmengine.utils import to_2tuple


@TRANSFORMS.register_module()
class RandomAffineCrop(BaseTransform):
    """A random part of an image, turned, sheared and mirrored at random, in one bilinear interpolation.

    What ``RandomResizedCrop``, ``RandomFlip`` and ``Rotate`` do one after the other, for images of some thousand pixels
    at a tenth of the time. There is no antialiasing: where a crop is much larger than ``scale``,
    :class:`FastRandomResizedCrop` is the better one. Pixels beyond the border mirror those within.

    Required key: ``img``, uint8 ``(H, W)`` or ``(H, W, C)``. Modified keys: ``img``, ``img_shape``.

    Args:
        scale: Rows and columns of the result, or one number for both.
        crop_ratio_range: Range of the crop's share of the image's area. Default: (0.08, 1.0).
        aspect_ratio_range: Range of the crop's width by its height. Default: (3 / 4, 4 / 3).
        flip: Probability of a mirror image, left to right. Default: 0.5.
        degrees: Turns are drawn from ``-degrees`` to ``degrees``. Default: 0.
        shear: Shears, in pixels to the side by pixels down, are drawn from ``-shear`` to ``shear``. Default: 0.

    Raises:
        ValueError: If a range is not rising and positive, ``flip`` is not in [0, 1] or a limit is negative.
    """

    def __init__(
        self,
        scale: int | Sequence[int],
        crop_ratio_range: Sequence[float] = (0.08, 1.0),
        aspect_ratio_range: Sequence[float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        degrees: float = 0.0,
        shear: float = 0.0,
    ):
        for name, limits in (('crop_ratio_range', crop_ratio_range), ('aspect_ratio_range', aspect_ratio_range)):
            if len(limits) != 2 or not 0 < limits[0] <= limits[1]:
                raise ValueError(f'{name} {limits} must be two positive numbers, rising')
        if crop_ratio_range[1] > 1:
            raise ValueError(f'crop_ratio_range {crop_ratio_range} is beyond 1, the whole image')
        if not 0 <= flip <= 1:
            raise ValueError(f'flip {flip} is not in [0, 1]')
        if degrees < 0 or shear < 0:
            raise ValueError(f'degrees {degrees} and shear {shear} must not be negative')
        self.scale = to_2tuple(scale)
        self.crop_ratio_range = tuple(crop_ratio_range)
        self.aspect_ratio_range = tuple(aspect_ratio_range)
        self.flip = flip
        self.degrees = degrees
        self.shear = shear

    def transform(self, results: dict) -> dict:
        """Replace ``img`` of ``results``."""
        image = results['img']
        image = cv2.warpAffine(
            image,
            self._draw(*image.shape[:2]),
            self.scale[::-1],
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT_101,
        )
        results.update(img=image, img_shape=image.shape)
        return results

    def _draw(self, rows: int, columns: int) -> np.ndarray:
        """Where in an image of that size a pixel ``(x, y, 1)`` of the result comes from, ``(2, 3)``."""
        area = rows * columns * np.random.uniform(*self.crop_ratio_range)
        aspect = math.exp(np.random.uniform(*map(math.log, self.aspect_ratio_range)))
        width, height = min(math.sqrt(area * aspect), columns), min(math.sqrt(area / aspect), rows)
        centre = (
            np.random.uniform(width, 2 * columns - width) / 2 - 0.5,
            np.random.uniform(height, 2 * rows - height) / 2 - 0.5,
        )
        mirror = -1 if np.random.rand() < self.flip else 1
        angle = math.radians(np.random.uniform(-self.degrees, self.degrees))
        shear = np.random.uniform(-self.shear, self.shear)
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        size = np.diag([mirror * width / self.scale[1], height / self.scale[0]])
        linear = turn @ np.array([[1, shear], [0, 1]]) @ size
        middle = np.array([self.scale[1] - 1, self.scale[0] - 1]) / 2
        return np.column_stack([linear, np.array(centre) - linear @ middle])

    def __repr__(self) -> str:
        return f'{type(self).__name__}(scale={self.scale}, crop_ratio_range={self.crop_ratio_range})'
