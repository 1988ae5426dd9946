"""Faster versions of mmpretrain's transforms for many crops of an image.

Each ``FastX`` takes the place of mmpretrain's or mmcv's ``X`` in a config and draws from the same distribution. Images
stay contiguous uint8 ``(H, W, 3)`` in BGR, from OpenCV's decoder to ``PackInputs``: no round trip through Pillow, no
negative strides. Those of :class:`LoadBands` are float32 from 0 to 255 and have any number of channels; what changes
colours refuses other than three. ``benchmarks/README.md`` has what each transform saves.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS
from mmpretrain.datasets.transforms import ColorJitter, GaussianBlur, MultiView, RandomResizedCrop
from torch.nn import functional as F

WHITE = 255


@TRANSFORMS.register_module()
class FastMultiView(MultiView):
    """Views of one image that is shared, where ``MultiView`` copies it for each view.

    The transforms see the image read-only, so that one which writes into it raises a ``ValueError`` instead of
    changing the other views; other entries of the results must not be modified in place.

    Required key: ``img``, array. Modified key: ``img``, list of arrays, one for each view.

    Args:
        transforms: Transforms of each kind of view.
        num_views: Number of views of each kind.
    """

    def transform(self, results: dict) -> dict:
        """Replace ``img`` of ``results`` by the views."""
        image = results['img'].view()
        image.flags.writeable = False
        results['img'] = [view(dict(results, img=image))['img'] for view in self.transforms]
        return results


def resize(image: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """Resize with antialiasing: Pillow's filters but for rounding, several times as fast.

    Args:
        image: ``(H, W, C)``, uint8 or float32 from 0 to 255.
        size: Rows and columns of the result.
        interpolation: 'bilinear' or 'bicubic'.

    Returns:
        ``(*size, C)``, contiguous, of the same type and range.
    """
    height, width, channels = image.shape
    # With a stride of its own for the batch (`image[None]` has none) torch sees `channels_last`, and has vector code.
    pixels = torch.from_numpy(image.copy()).view(1, height, width, channels).permute(0, 3, 1, 2)
    resized = F.interpolate(pixels, size, mode=interpolation, antialias=True)
    if resized.is_floating_point():
        resized.clamp_(0, WHITE)  # as uint8 is: bicubic interpolation goes beyond
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


@TRANSFORMS.register_module()
class FastRandomResizedCrop(RandomResizedCrop):
    """``RandomResizedCrop`` with ``backend='pillow'``, without Pillow: see :func:`resize`.

    Required key: ``img``, ``(H, W, C)``, uint8 or float32. Modified keys: ``img``, ``img_shape``.

    Args:
        scale: Rows and columns of the result, or one number for both.
        crop_ratio_range: Range of the crop's share of the image's area. Default: (0.08, 1.0).
        aspect_ratio_range: Range of the crop's width by its height. Default: (3 / 4, 4 / 3).
        max_attempts: Draws before the crop in the centre is taken. Default: 10.
        interpolation: 'bilinear' or 'bicubic'. Default: 'bicubic'.

    Raises:
        ValueError: If a range is not rising or the interpolation is another.
    """

    def __init__(
        self,
        scale: int | Sequence[int],
        crop_ratio_range: tuple[float, float] = (0.08, 1.0),
        aspect_ratio_range: tuple[float, float] = (3 / 4, 4 / 3),
        max_attempts: int = 10,
        interpolation: str = 'bicubic',
    ):
        if interpolation not in ('bilinear', 'bicubic'):
            raise ValueError(f"interpolation '{interpolation}' is neither 'bilinear' nor 'bicubic'")
        super().__init__(scale, crop_ratio_range, aspect_ratio_range, max_attempts, interpolation)

    def transform(self, results: dict) -> dict:
        """Replace ``img`` of ``results`` by a crop."""
        image = results['img']
        top, left, height, width = self.rand_crop_params(image)
        image = resize(image[top : top + height, left : left + width], tuple(self.scale), self.interpolation)
        results.update(img=image, img_shape=image.shape)
        return results


class _Sometimes(BaseTransform):
    """Changes the image with probability ``prob``; a ``ValueError`` if that is not in [0, 1]."""

    def __init__(self, prob: float):
        if not 0 <= prob <= 1:
            raise ValueError(f'prob {prob} is not in [0, 1]')
        self.prob = prob

    def transform(self, results: dict) -> dict:
        """Replace ``img`` of ``results``, or leave it."""
        if np.random.rand() < self.prob:
            results['img'] = self.apply(results['img'])
        return results

    @staticmethod
    @abstractmethod
    def apply(image: np.ndarray) -> np.ndarray:
        """What becomes of the image."""

    def __repr__(self) -> str:
        return f'{type(self).__name__}(prob={self.prob})'


@TRANSFORMS.register_module()
class FastRandomFlip(_Sometimes):
    """Mirrors an image, left to right; boxes and the like, which ``RandomFlip`` turns too, are not looked at.

    Required and modified key: ``img``, ``(H, W, C)``, uint8 or float32.

    Args:
        prob: Probability of a flip.
    """

    @staticmethod
    def apply(image: np.ndarray) -> np.ndarray:
        return cv2.flip(image, 1).reshape(image.shape)  # OpenCV drops the axis of one channel


def grey(image: np.ndarray) -> np.ndarray:
    """Three equal channels of each pixel's luma (ITU-R 601-2); an image of one channel is that already."""
    if image.ndim < 3 or image.shape[2] == 1:
        return image
    _check_colours(image, 'grey and saturation')
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)


def _check_colours(image: np.ndarray, what: str) -> None:
    """Raise a ``ValueError`` if there are not three channels for a change of colour."""
    channels = image.shape[2] if image.ndim > 2 else 1
    if channels != 3:
        raise ValueError(
            f'{what} are of images with three channels, blue, green and red; these have {channels}: leave out '
            'FastRandomGrayscale, and saturation and hue of FastColorJitter'
        )


@TRANSFORMS.register_module()
class FastRandomGrayscale(_Sometimes):
    """Takes the colour out of an image, which keeps its three channels.

    Required and modified key: ``img``, uint8 ``(H, W, 3)``, BGR.

    Args:
        prob: Probability of a grey image.
    """

    @staticmethod
    def apply(image: np.ndarray) -> np.ndarray:
        return grey(image)


def adjust_brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Multiply by ``factor``, as ``torchvision.transforms.functional.adjust_brightness``."""
    if image.dtype != np.uint8:
        return (image * np.float32(factor)).clip(0, WHITE)
    return cv2.LUT(image, _blend_table(0, factor))


def adjust_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Stretch about the mean luma, as ``torchvision.transforms.functional.adjust_contrast``.

    Of other than one or three channels, that is the mean of all values.
    """
    mean = cv2.mean(grey(image))[0] if image.ndim < 3 or image.shape[2] in (1, 3) else float(image.mean())
    if image.dtype != np.uint8:
        return (np.float32(mean) + np.float32(factor) * (image - np.float32(mean))).clip(0, WHITE)
    return cv2.LUT(image, _blend_table(int(mean + 0.5), factor))


def _blend_table(level: int, factor: float) -> np.ndarray:
    """What becomes of each of 256 levels that are moved away from (or to) one of them."""
    return (level + factor * (np.arange(256) - level)).clip(0, 255).astype(np.uint8)


def adjust_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Stretch about each pixel's luma, as ``torchvision.transforms.functional.adjust_saturation``."""
    mixed = cv2.addWeighted(image, factor, grey(image), 1 - factor, 0)
    return mixed if image.dtype == np.uint8 else mixed.clip(0, WHITE)


def adjust_hue(image: np.ndarray, factor: float) -> np.ndarray:
    """Turn the hue by ``factor`` of a circle, as ``torchvision.transforms.functional.adjust_hue``."""
    _check_colours(image, 'hues')
    if image.dtype != np.uint8:
        hue, saturation, value = cv2.split(cv2.cvtColor(image / np.float32(WHITE), cv2.COLOR_BGR2HSV))
        turned = cv2.merge(((hue + np.float32(factor * 360)) % 360, saturation, value))
        return cv2.cvtColor(turned, cv2.COLOR_HSV2BGR) * np.float32(WHITE)
    hue, saturation, value = cv2.split(cv2.cvtColor(image, cv2.COLOR_BGR2HSV_FULL))
    hue += np.uint8(int(factor * 255) % 256)  # overflows, as a circle should
    return cv2.cvtColor(cv2.merge((hue, saturation, value)), cv2.COLOR_HSV2BGR_FULL)


@TRANSFORMS.register_module()
class FastColorJitter(ColorJitter):
    """``ColorJitter`` with ``backend='pillow'``, by tables and OpenCV: the same draws, in the same random order.

    Levels differ from Pillow's by rounding, and by a few after a turn of the hue.

    Required and modified key: ``img``, uint8 or float32 from 0 to 255, ``(H, W, 3)`` in BGR; brightness and contrast
    are changed of any number of channels.

    Args:
        brightness: Factors are drawn from ``1 - brightness`` to ``1 + brightness``, or from a range. Default: 0.
        contrast: Likewise. Default: 0.
        saturation: Likewise. Default: 0.
        hue: Turns are drawn from ``-hue`` to ``hue``, or from a range within [-0.5, 0.5]. Default: 0.
    """

    ADJUST = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)

    def __init__(self, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0):
        super().__init__(brightness, contrast, saturation, hue)

    def transform(self, results: dict) -> dict:
        """Replace ``img`` of ``results``."""
        order, *factors = self._rand_params()
        for index in order:
            if factors[index] is not None:
                results['img'] = self.ADJUST[index](results['img'], factors[index])
        return results


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Convolve with a Gaussian that ends at 3 sigma; twice as fast as ``cv2.GaussianBlur``, at most a level off."""
    kernel = cv2.getGaussianKernel(2 * math.ceil(3 * sigma) + 1, sigma)
    return cv2.sepFilter2D(image, -1, kernel, kernel).reshape(image.shape)  # OpenCV drops the axis of one channel


@TRANSFORMS.register_module()
class FastGaussianBlur(GaussianBlur):
    """``GaussianBlur`` with OpenCV's Gaussian instead of Pillow's three box filters that come close to it.

    Required and modified key: ``img``, ``(H, W, C)``, uint8 or float32. The arguments are those of ``GaussianBlur``.
    """

    def transform(self, results: dict) -> dict:
        """Replace ``img`` of ``results``, or leave it."""
        if not self.random_disable():
            sigma = self.random_magnitude() if self.radius is None else self.radius
            results['img'] = blur(results['img'], sigma)
        return results
