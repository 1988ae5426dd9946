"""Images from files that nobody has looked at."""

from __future__ import annotations

import io
import warnings

import mmcv
from mmcv.transforms import LoadImageFromFile
from mmengine import fileio
from mmengine.registry import TRANSFORMS
from PIL import Image, UnidentifiedImageError


class BadImageError(ValueError):
    """An image file that cannot be used.

    Args:
        reason: What is wrong with it.
        path: The file. Default: not known.
    """

    def __init__(self, reason: str, path: str | None = None):
        super().__init__(reason if path is None else f'{path}: {reason}')
        self.reason = reason
        self.path = path


@TRANSFORMS.register_module()
class SafeLoadImageFromFile(LoadImageFromFile):
    """``LoadImageFromFile`` that has one error for all that can be wrong with a file.

    The size is read off the header before anything is decoded, so that a decompression bomb does no harm. Truncated
    files, of which decoders return as much as there is, are told by their missing end. Whole files are decoded as
    ``LoadImageFromFile`` does: CMYK, palettes, 16 bits and grey end as 8 bits BGR, upright by their EXIF orientation.

    In a pre-training run, :class:`~poa_mm.datasets.SeededDataset` reads another image instead of a bad one.

    Args:
        max_pixels: Pixels of the largest image. Default: 64 million, such as 8,000 x 8,000.
        **kwargs: Of ``LoadImageFromFile``; but ``ignore_empty``, for there is no image that is None.

    Raises:
        ValueError: If ``max_pixels`` is below 1, or ``ignore_empty`` is set.
        BadImageError: By :meth:`transform`, if the file is missing, empty, truncated, too large or no image.
    """

    def __init__(self, max_pixels: int = 64_000_000, **kwargs):
        if max_pixels < 1:
            raise ValueError(f'max_pixels {max_pixels} is below 1')
        if kwargs.get('ignore_empty'):
            raise ValueError('ignore_empty must not be set: an image that cannot be used is a BadImageError')
        super().__init__(**kwargs)
        self.max_pixels = max_pixels

    def transform(self, results: dict) -> dict:
        """Add ``img``, ``img_shape`` and ``ori_shape`` to ``results``."""
        path, results = results['img_path'], dict(results)
        try:
            content = results.pop('img_bytes', None)  # of sources that are no files
            if content is None:
                content = fileio.get(path, backend_args=self.backend_args)
            check_image(content, self.max_pixels)
            image = mmcv.imfrombytes(content, flag=self.color_type, backend=self.imdecode_backend)
        except Exception as error:  # decoders raise whatever they stumble over: struct.error, SyntaxError, cv2.error ..
            raise BadImageError(str(error) or type(error).__name__, str(path)) from error
        if image is None:
            raise BadImageError('cannot be decoded', str(path))
        image = image.astype('float32') if self.to_float32 else image
        return dict(results, img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])


def check_image(content: bytes, max_pixels: int) -> None:
    """Check a file's header and end. Pixels are decoded only where these leave doubt that the file is whole.

    Args:
        content: The file.
        max_pixels: Pixels of the largest image.

    Raises:
        BadImageError, OSError: If the file is empty, truncated or no image, or the image is too large.
    """
    if not content:
        raise BadImageError('the file is empty')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of a size that is about to be checked, and of odd metadata
        try:
            image = Image.open(io.BytesIO(content))  # the header only
        except UnidentifiedImageError:  # its message has an address in memory, which is another in each run
            raise BadImageError('the file is no image, or of an unknown format') from None
        width, height = image.size
        if width * height > max_pixels:
            raise BadImageError(f'{width} x {height} pixels are more than {max_pixels}')
        if not _has_end(content, image.format):
            image.load()  # raises where data is missing


def _has_end(content: bytes, format: str) -> bool:
    """Whether the file surely is not truncated."""
    if format in ('JPEG', 'MPO'):
        # The end marker (EOI) behind the start of the last scan (SOS): a thumbnail before it has an end of its own.
        return content.rfind(b'\xff\xd9') > content.rfind(b'\xff\xda')
    return format == 'PNG' and content.endswith(b'IEND\xaeB`\x82')
