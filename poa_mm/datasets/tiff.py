"""TIFF files that Pillow does not read or cuts down to 8 bits: floats, signs, 12 bits in 16, many bands, new codecs."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tifffile
from PIL import Image
from tifffile import COMPRESSION, EXTRASAMPLE, PHOTOMETRIC

from .levels import to_8_bits

NODATA = 42113  # GDAL's tag for the value of pixels that have none
BASE = {  # channels of colour by what they mean
    PHOTOMETRIC.MINISWHITE: 1,
    PHOTOMETRIC.MINISBLACK: 1,
    PHOTOMETRIC.PALETTE: 1,
    PHOTOMETRIC.RGB: 3,
    PHOTOMETRIC.SEPARATED: 4,
    PHOTOMETRIC.YCBCR: 3,
    PHOTOMETRIC.LINEAR_RAW: 3,
}


class TiffImage(NamedTuple):
    """A decoded image, not yet turned upright."""

    rgb: np.ndarray  # uint8 (H, W, 3)
    alpha: np.ndarray | None  # (H, W) in [0, 1]
    orientation: int  # as in EXIF


def read_tiff(
    content: bytes, check_size: Callable[[int, int], None], value_range: tuple[float, float] | None = None
) -> TiffImage:
    """Read the first image of a TIFF file.

    Of many bands, the first three are taken as red, green and blue, of two the first as grey.

    Args:
        content: The file.
        check_size: Called with width and height before anything is decoded.
        value_range: Values that become black and white. Default: the full scale of the bits that the file says it
            has; where they are 16 or more, see :func:`~poa_mm.datasets.levels.full_range`.

    Raises:
        ValueError: If the file is truncated, or of a kind of which no RGB can be made.
    """
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page = file.pages.first
        check_size(page.imagewidth, page.imagelength * page.imagedepth)
        kind = getattr(page.photometric, 'name', page.photometric)
        if page.photometric not in BASE or page.axes not in ('YX', 'YXS', 'SYX'):
            raise ValueError(f'TIFF images of photometric {kind} and axes {page.axes} cannot be read')
        if page.photometric == PHOTOMETRIC.YCBCR and page.compression not in (COMPRESSION.JPEG, COMPRESSION.OJPEG):
            raise ValueError(f'TIFF images of photometric {kind} cannot be read without compression by JPEG')
        if any(start + size > len(content) for start, size in zip(page.dataoffsets, page.databytecounts)):
            raise ValueError('the file is truncated')
        values = page.asarray(maxworkers=1)
        values = np.moveaxis(values, 0, -1) if page.axes == 'SYX' else values
        values = values.reshape(*values.shape[:2], -1)
        if values.shape[2] < BASE[page.photometric]:
            raise ValueError(f'TIFF images of photometric {kind} with {values.shape[2]} channels cannot be read')
        rgb = _rgb(page, values, value_range)
        alpha, premultiplied = _alpha(page, values)
        if premultiplied:
            rgb = np.rint(rgb / np.maximum(alpha, 1e-6)[..., None]).clip(0, 255).astype(np.uint8)
        return TiffImage(rgb, alpha, int(page.tags.valueof('Orientation', 1)))


def _rgb(page: tifffile.TiffPage, values: np.ndarray, value_range: tuple[float, float] | None) -> np.ndarray:
    """Colours of all bands ``(H, W, S)``, as uint8 ``(H, W, 3)``."""
    if page.photometric == PHOTOMETRIC.PALETTE:
        return to_8_bits(np.moveaxis(page.colormap, 0, -1)[values[..., 0]], (0, 65535))
    number = BASE[page.photometric]
    if number == 1 and values.shape[2] >= 3 and not _is_alpha(page, 1):
        number = 3  # bands
    values = values[..., :number]
    valid = None
    if NODATA in page.tags:
        valid = values != page.nodata
    if values.dtype == np.uint8:
        value_range = None
    elif value_range is None and values.dtype.kind == 'u' and page.bitspersample not in (8, 16, 32, 64):
        value_range = (0, 2**page.bitspersample - 1)
    levels = to_8_bits(values, value_range, valid)
    if page.photometric == PHOTOMETRIC.MINISWHITE and number == 1:
        levels = 255 - levels
    if number == 4:
        return np.asarray(Image.fromarray(np.ascontiguousarray(levels), 'CMYK').convert('RGB'))
    return np.repeat(levels, 3, axis=2) if number == 1 else levels


def _is_alpha(page: tifffile.TiffPage, channel: int) -> bool:
    index = channel - BASE[page.photometric]
    return 0 <= index < len(page.extrasamples) and page.extrasamples[index] in (
        EXTRASAMPLE.ASSOCALPHA,
        EXTRASAMPLE.UNASSALPHA,
    )


def _alpha(page: tifffile.TiffPage, values: np.ndarray) -> tuple[np.ndarray | None, bool]:
    """Alpha ``(H, W)`` in [0, 1], if there is any, and whether the colours are multiplied by it."""
    channel = next((channel for channel in range(values.shape[2]) if _is_alpha(page, channel)), None)
    if channel is None:
        return None, False
    alpha = values[..., channel].astype(np.float64)
    if values.dtype.kind in 'iu':
        alpha /= np.iinfo(values.dtype).max
    kind = page.extrasamples[channel - BASE[page.photometric]]
    return np.nan_to_num(alpha).clip(0, 1), kind == EXTRASAMPLE.ASSOCALPHA
