"""The values of an image file as they are: any number of bands, any depth."""

from __future__ import annotations

import io

import cv2
import numpy as np
from PIL import Image

from .decoding import TIFF_MARKS, BadImageError, check_size

NUMPY_MARK = b'\x93NUMPY'
PNG_MARK = b'\x89PNG\r\n\x1a\n'


def read_bands(content: bytes, max_pixels: int) -> np.ndarray:
    """All bands of an image, in the order of the file.

    ``.npy`` files hold ``(H, W)``, ``(H, W, C)`` or, where the last axis is the longest, ``(C, H, W)``. Of a TIFF file
    with several pages of one size, the pages are the bands. PNG, PGM and PPM keep their 16 bits, others have 8.

    Args:
        content: The file.
        max_pixels: Pixels of the largest image.

    Returns:
        ``(H, W, C)``, of the type of the file.

    Raises:
        BadImageError: If the file is no image, or too large. Decoders raise many other errors as well.
    """
    if content.startswith(NUMPY_MARK):
        return _read_numpy(content, max_pixels)
    if content[:4] in TIFF_MARKS:
        return _read_tiff(content, max_pixels)
    image = Image.open(io.BytesIO(content))
    check_size(*image.size, max_pixels)
    if content.startswith(PNG_MARK) or image.format == 'PPM':
        image.load()  # raises where data is missing
        values = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        if values is None:
            raise BadImageError('cannot be decoded')
        values = values.reshape(*values.shape[:2], -1)
        return values[..., [2, 1, 0, 3][: values.shape[2]]] if values.shape[2] > 2 else values
    values = np.asarray(image.convert('RGB') if image.mode in ('P', 'CMYK', 'YCbCr', '1') else image)
    return values.reshape(*values.shape[:2], -1)


def _read_numpy(content: bytes, max_pixels: int) -> np.ndarray:
    values = np.load(io.BytesIO(content), allow_pickle=False)
    if values.ndim not in (2, 3) or values.dtype.kind not in 'uif' or 0 in values.shape:
        raise BadImageError(f'an array {values.shape} of {values.dtype} is no image')
    if values.ndim == 2:
        values = values[..., None]
    elif values.shape[0] < min(values.shape[1:]):
        values = np.moveaxis(values, 0, -1)
    check_size(values.shape[1], values.shape[0], max_pixels)
    return values


def _read_tiff(content: bytes, max_pixels: int) -> np.ndarray:
    import tifffile  # takes a while to import

    with tifffile.TiffFile(io.BytesIO(content)) as file:
        pages = [page for page in file.pages if not page.is_reduced]
        first = pages[0]
        check_size(first.imagewidth, first.imagelength * first.imagedepth, max_pixels)
        if any(page.shape != first.shape or page.dtype != first.dtype for page in pages) or first.axes == 'YXS':
            pages = pages[:1]
        for page in pages:
            if any(start + size > len(content) for start, size in zip(page.dataoffsets, page.databytecounts)):
                raise BadImageError('the file is truncated')
        planes = [_last(page.asarray(maxworkers=1), page.axes) for page in pages]
    values = np.concatenate(planes, axis=2)
    if values.dtype.kind not in 'buif':
        raise BadImageError(f'values of {values.dtype} are no colours')
    return values.astype(np.uint8) * 255 if values.dtype.kind == 'b' else values  # black and white


def _last(values: np.ndarray, axes: str) -> np.ndarray:
    """Bands last, whatever the axes of a page are."""
    if axes not in ('YX', 'YXS', 'SYX'):
        raise BadImageError(f'TIFF images of axes {axes} cannot be read')
    return values[..., None] if axes == 'YX' else np.moveaxis(values, 0, -1) if axes == 'SYX' else values
