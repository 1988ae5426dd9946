"""Images with any number of bands and any depth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine import fileio
from mmengine.registry import TRANSFORMS

from ..bands import read_bands
from ..decoding import BadImageError

Range = Sequence[float] | Sequence[Sequence[float]]


@TRANSFORMS.register_module()
class LoadBands(BaseTransform):
    """Loads images with all their bands, as float32 from 0 to 255: satellite bands, 12-bit scans, ``.npy`` arrays.

    Values keep their precision; the scale is that of 8-bit images, so that mean and standard deviation, brightness and
    contrast mean the same for every sensor. Three bands come as blue, green and red, as everywhere in OpenMMLab;
    others stay in the order of the file.

    Required key: ``img_path``, ``img_bytes`` or ``img``. Added keys: ``img``, float32 ``(H, W, C)``, ``img_shape``,
    ``ori_shape``.

    Args:
        in_channels: Bands of each image.
        value_range: Values that become 0 and 255, or a pair for each band; those beyond are cut off, and what is not
            finite becomes 0. ``tools/inspect_images.py`` suggests them.
        max_pixels: Pixels of the largest image. Default: 64 million.
        backend_args: Of mmengine's storage backend. Default: that of the path.

    Raises:
        ValueError: If the range is not rising or has another number of bands, or ``in_channels`` is below 1.
        BadImageError: By :meth:`transform`, if an image cannot be used, or has another number of bands.
    """

    def __init__(
        self,
        in_channels: int,
        value_range: Range,
        max_pixels: int = 64_000_000,
        backend_args: dict | None = None,
    ):
        bounds = np.asarray(value_range, dtype=np.float64)
        if in_channels < 1 or max_pixels < 1:
            raise ValueError(f'in_channels {in_channels} and max_pixels {max_pixels} must be positive')
        if bounds.shape not in ((2,), (in_channels, 2)) or not (bounds[..., 0] < bounds[..., 1]).all():
            raise ValueError(
                f'value_range {value_range} is neither a rising pair nor {in_channels} of them, one for each band'
            )
        self.in_channels = in_channels
        self.value_range = value_range
        self.max_pixels = max_pixels
        self.backend_args = backend_args
        self._low = bounds[..., 0].astype(np.float32)
        self._scale = (255 / (bounds[..., 1] - bounds[..., 0])).astype(np.float32)

    def transform(self, results: dict) -> dict:
        """Add ``img``, ``img_shape`` and ``ori_shape`` to ``results``."""
        results = dict(results)
        content, values = results.pop('img_bytes', None), results.get('img')
        try:
            if values is None:
                if content is None:
                    content = fileio.get(results['img_path'], backend_args=self.backend_args)
                values = read_bands(content, self.max_pixels)
        except Exception as error:  # decoders raise whatever they stumble over
            raise BadImageError(str(error) or type(error).__name__, str(results['img_path'])) from error
        if values.shape[2] != self.in_channels:
            reason = f'has {values.shape[2]} bands, in_channels is {self.in_channels}'
            raise BadImageError(reason, str(results.get('img_path')))
        image = (values.astype(np.float32) - self._low) * self._scale
        image = np.nan_to_num(image, copy=False, nan=0).clip(0, 255)
        image = np.ascontiguousarray(image[..., ::-1] if self.in_channels == 3 else image)
        return dict(results, img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])

    def __repr__(self) -> str:
        return f'{type(self).__name__}(in_channels={self.in_channels}, value_range={self.value_range})'
