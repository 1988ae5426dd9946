"""From the bytes of an image file to 8 bits in blue, green and red, whatever the file holds.

Ordinary JPEG and PNG files go through OpenCV, as everywhere in OpenMMLab. All that OpenCV gets wrong without a word
(transparency, fewer than 16 bits in 16, orientation outside of JPEG) or does not read goes through Pillow, and TIFF
files that Pillow does not read either through tifffile. docs/reliability.md lists the rules.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from functools import cache

import cv2
import mmcv
import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from poa_mm.mistakes import UserError

from .levels import to_8_bits

# Others that Pillow knows are no pictures (MPEG, HDF5 ..), or run a program to be read (EPS). TGA has no mark by
# which it is known, and comes last. MPO comes with JPEG.
FORMATS = (
    *('JPEG', 'PNG', 'TIFF', 'WEBP', 'AVIF', 'GIF', 'BMP', 'DIB', 'PPM', 'JPEG2000', 'ICO', 'PCX', 'SGI', 'QOI'),
    'TGA',
)
TIFF_MARKS = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')  # little and big endian, up to 4 GB and above
ORIENTATION = 0x0112  # tag of EXIF and TIFF
BITS, SAMPLE_FORMAT = 258, 339  # tags of TIFF
WHITE = 255
Ground = int | Sequence[int]
Range = tuple[float, float] | None
_SPACE = rb'(?:\s|#[^\r\n]*[\r\n])+'
PPM_MAXIMUM = re.compile(rb'P[2356]' + 3 * (_SPACE + rb'(\d+)'))  # width, height, largest level


class BadImageError(UserError, ValueError):
    """An image file that cannot be used.

    Args:
        reason: What is wrong with it.
        path: The file. Default: not known.
    """

    def __init__(self, reason: str, path: str | None = None):
        super().__init__(reason if path is None else f'{path}: {reason}')
        self.reason = reason
        self.path = path


def decode(
    content: bytes,
    max_pixels: int,
    ground: Ground = WHITE,
    value_range: Range = None,
) -> np.ndarray:
    """Decode a whole image file, upright.

    Args:
        content: The file.
        max_pixels: Pixels of the largest image; of a larger one, only the header is read.
        ground: What shines through where an image is transparent: a level, or red, green and blue. Default: white.
        value_range: Values that become black and white, of images with more than 8 bits. Default: found for each
            image, see :func:`~poa_mm.datasets.levels.full_range`.

    Returns:
        uint8 ``(H, W, 3)``, BGR.

    Raises:
        BadImageError: If the file is empty, truncated or no image, or the image is too large. Decoders raise many
            other errors as well.
    """
    image = open_header(content, max_pixels)
    if image is None or (image.format == 'TIFF' and not _has_8_bits(image)):
        return _decode_tiff(content, max_pixels, ground, value_range)
    deep = _maximum(image.format, content)
    if not deep and _is_ordinary(image, content):
        decoded = mmcv.imfrombytes(content, flag='color', backend='cv2')
        if decoded is not None:
            return decoded
    try:
        image.load()
    except Exception:
        if image.format != 'TIFF':
            raise
        return _decode_tiff(content, max_pixels, ground, value_range)  # by a compression that Pillow does not know
    if deep:
        return _decode_16_bits(content, image, ground, value_range or (None if deep == 65535 else (0, deep)))
    return _decode_by_pillow(image, ground, value_range)


# --- looking before decoding -----------------------------------------------------------------
def open_header(content: bytes, max_pixels: int) -> Image.Image | None:
    """Read a file's header, and check its end. Pixels are decoded only where a JPEG or PNG may not be whole.

    Args:
        content: The file.
        max_pixels: Pixels of the largest image.

    Returns:
        The image, not yet decoded; None for a TIFF file that Pillow does not know.

    Raises:
        BadImageError, OSError: If the file is empty, truncated or no image, or the image is too large.
    """
    if not content:
        raise BadImageError('the file is empty')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of a size that is about to be checked, and of odd metadata
        try:
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        except UnidentifiedImageError:  # its message has an address in memory, which is another in each run
            if content[:4] in TIFF_MARKS:
                return None
            raise BadImageError('the file is no image, or of an unknown format') from None
        check_size(*image.size, max_pixels)
        if not _has_end(content, image.format):
            image.load()  # raises where data is missing
    return image


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raise a :class:`BadImageError` if an image has too many pixels."""
    if width * height > max_pixels:
        raise BadImageError(f'{width} x {height} pixels are more than {max_pixels}')


def _has_end(content: bytes, format: str) -> bool:
    """Whether a file surely is not truncated, or will be decoded by what notices it."""
    if format in ('JPEG', 'MPO'):
        # The end marker (EOI) behind the start of the last scan (SOS): a thumbnail before it has an end of its own.
        return content.rfind(b'\xff\xd9') > content.rfind(b'\xff\xda')
    return format != 'PNG' or content.endswith(b'IEND\xaeB`\x82')


def _is_ordinary(image: Image.Image, content: bytes) -> bool:
    """Whether OpenCV decodes a file of 8 bits as it should."""
    if image.format in ('JPEG', 'MPO'):
        return True
    if image.format != 'PNG' or _is_transparent(image):
        return False
    # Damaged animations crash OpenCV 4.12.
    animated = b'acTL' in content[: content.find(b'IDAT')]
    return not animated and not {'exif', 'Raw profile type exif', 'XML:com.adobe.xmp'} & image.info.keys()


def _is_transparent(image: Image.Image) -> bool:
    return 'transparency' in image.info or image.mode in ('RGBA', 'LA', 'PA', 'RGBa', 'La')


def _has_8_bits(image: Image.Image) -> bool:
    """Whether a TIFF file has levels of 8 bits, or fewer as Pillow reads them, without a sign."""
    bits = image.tag_v2.get(BITS, (1,))
    return set(bits) <= {1, 2, 4, 8} and set(image.tag_v2.get(SAMPLE_FORMAT, (1,))) <= {1, 4}


def _maximum(format: str, content: bytes) -> int:
    """The largest level that a PNG or PPM file can have, if that takes more than 8 bits; else 0."""
    maximum = 0
    if format == 'PNG':
        maximum = 2 ** content[24] - 1  # in the header, which is the first chunk
    elif format == 'PPM' and (match := PPM_MAXIMUM.match(content)):
        maximum = int(match[3])
    return maximum if maximum > 255 else 0


# --- decoding --------------------------------------------------------------------------------
def _decode_by_pillow(image: Image.Image, ground: Ground, value_range: Range) -> np.ndarray:
    # Pillow has turned a TIFF image already.
    orientation = 1 if image.format == 'TIFF' else _orientation(image)
    if image.mode == 'LAB':
        image = ImageCms.applyTransform(image, _lab_to_rgb())
    if image.mode[0] in 'IF':  # Pillow scales JPEG 2000 to 16 bits; the others are floats, such as PFM's
        full = (0, 65535) if image.format in ('JPEG2000', 'PPM') and image.mode[0] == 'I' else None
        pixels = np.repeat(to_8_bits(np.asarray(image), value_range or full)[..., None], 3, axis=2)
    elif _is_transparent(image):
        rgba = np.asarray(image.convert('RGBA'))
        pixels = composite(rgba[..., :3], rgba[..., 3] / 255, ground)
    else:
        pixels = np.asarray(image.convert('RGB'))
    return turn(np.ascontiguousarray(pixels[..., ::-1]), orientation)


def _decode_16_bits(content: bytes, image: Image.Image, ground: Ground, value_range: Range) -> np.ndarray:
    """A whole PNG or PPM file of 16 bits, of which Pillow keeps 8 where there are colours."""
    values = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise BadImageError('cannot be decoded')
    values = values[..., None] if values.ndim == 2 else values  # channels: 1, 3 or 4
    alpha = values[..., 3] / 65535 if values.shape[2] == 4 else None
    pixels = to_8_bits(values[..., :3], value_range)
    pixels = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
    if alpha is not None:
        pixels = composite(pixels[..., ::-1], alpha, ground)[..., ::-1]
    return turn(np.ascontiguousarray(pixels), _orientation(image))


def _decode_tiff(content: bytes, max_pixels: int, ground: Ground, value_range: Range) -> np.ndarray:
    from .tiff import read_tiff  # tifffile takes a while to import, and is seldom needed

    image = read_tiff(content, lambda *size: check_size(*size, max_pixels), value_range)
    pixels = image.rgb if image.alpha is None else composite(image.rgb, image.alpha, ground)
    return turn(np.ascontiguousarray(pixels[..., ::-1]), image.orientation)


@cache
def _lab_to_rgb() -> ImageCms.ImageCmsTransform:
    lab, rgb = ImageCms.createProfile('LAB'), ImageCms.createProfile('sRGB')
    return ImageCms.buildTransform(lab, rgb, 'LAB', 'RGB')


def composite(rgb: np.ndarray, alpha: np.ndarray, ground: Ground) -> np.ndarray:
    """Put an image on a ground.

    Args:
        rgb: uint8 ``(H, W, 3)``.
        alpha: ``(H, W)``, from 0, where the ground is seen, to 1. An image that is nowhere to be seen is taken as
            one whose alpha means nothing.
        ground: A level, or red, green and blue.

    Returns:
        uint8 ``(H, W, 3)``.
    """
    if not alpha.any():
        return rgb
    return np.rint(rgb * alpha[..., None] + np.asarray(ground) * (1 - alpha[..., None])).astype(np.uint8)


def _orientation(image: Image.Image) -> int:
    """How an image is to be turned, by its EXIF data; those that make no sense don't count."""
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # whatever the parsers stumble over
        return 1


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror an image ``(H, W, C)`` upright: what EXIF's orientations 2 to 8 ask for."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
