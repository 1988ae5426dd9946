"""Images from files that nobody has looked at."""

from __future__ import annotations

from collections.abc import Sequence

import mmcv
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmengine import fileio
from mmengine.registry import TRANSFORMS

from ..decoding import WHITE, BadImageError, decode, open_header


@TRANSFORMS.register_module()
class SafeLoadImageFromFile(LoadImageFromFile):
    """``LoadImageFromFile`` that has one error for all that can be wrong with a file, and reads more of them.

    The size is read off the header before anything is decoded, so that a decompression bomb does no harm. Truncated
    files, of which decoders return as much as there is, are told by their missing end. Whole files end as 8 bits BGR,
    upright; ordinary JPEG and PNG files are decoded as ``LoadImageFromFile`` does, for the others see
    :mod:`poa_mm.datasets.decoding`.

    In a pre-training run, :class:`~poa_mm.datasets.SeededDataset` reads another image instead of a bad one.

    Args:
        max_pixels: Pixels of the largest image. Default: 64 million, such as 8,000 x 8,000.
        ground: What shines through where an image is transparent: a level, or red, green and blue. Default: white.
        value_range: Values that become black and white, of images with more than 8 bits, such as (0, 4095). Default:
            found for each image by its largest value, see :func:`~poa_mm.datasets.levels.full_range`.
        **kwargs: Of ``LoadImageFromFile``; but ``ignore_empty``, for there is no image that is None. Another
            ``color_type`` or ``imdecode_backend`` than the default decodes as ``LoadImageFromFile`` does.

    Raises:
        ValueError: If an option is out of range, or ``ignore_empty`` is set.
        BadImageError: By :meth:`transform`, if the file is missing, empty, truncated, too large or no image.
    """

    def __init__(
        self,
        max_pixels: int = 64_000_000,
        ground: int | Sequence[int] = WHITE,
        value_range: Sequence[float] | None = None,
        **kwargs,
    ):
        if max_pixels < 1:
            raise ValueError(f'max_pixels {max_pixels} is below 1')
        if kwargs.get('ignore_empty'):
            raise ValueError('ignore_empty must not be set: an image that cannot be used is a BadImageError')
        levels = [ground] if isinstance(ground, int) else list(ground)
        if len(levels) not in (1, 3) or not all(0 <= level <= 255 for level in levels):
            raise ValueError(f'ground {ground} is neither a level in 0..255 nor three of them')
        if value_range is not None and not (len(value_range) == 2 and value_range[0] < value_range[1]):
            raise ValueError(f'value_range {value_range} must be two rising numbers')
        super().__init__(**kwargs)
        self.max_pixels = max_pixels
        self.ground = ground
        self.value_range = value_range

    def transform(self, results: dict) -> dict:
        """Add ``img``, ``img_shape`` and ``ori_shape`` to ``results``."""
        path, results = results['img_path'], dict(results)
        try:
            content = results.pop('img_bytes', None)  # of sources that are no files
            if content is None:
                content = fileio.get(path, backend_args=self.backend_args)
            image = self._decoded(content)
        except Exception as error:  # decoders raise whatever they stumble over: struct.error, SyntaxError, cv2.error ..
            raise BadImageError(str(error) or type(error).__name__, str(path)) from error
        if image is None:
            raise BadImageError('cannot be decoded', str(path))
        image = image.astype('float32') if self.to_float32 else image
        return dict(results, img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])

    def _decoded(self, content: bytes) -> np.ndarray | None:
        if self.color_type == 'color' and self.imdecode_backend in ('cv2', None):
            return decode(content, self.max_pixels, self.ground, self.value_range)
        open_header(content, self.max_pixels)
        return mmcv.imfrombytes(content, flag=self.color_type, backend=self.imdecode_backend)
