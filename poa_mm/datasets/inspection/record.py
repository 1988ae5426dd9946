"""What there is to say about one image."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from ..bands import NUMPY_MARK, PNG_MARK, read_bands
from ..decoding import ORIENTATION, TIFF_MARKS, BadImageError, decode

DARK = 16  # of 255: what 99 of 100 pixels of a near-black image are below
MAX_PIXELS = 64_000_000


@dataclass
class Record:
    """One image.

    Attributes:
        suffix: Of its name, in lower case.
        digest: First 8 bytes of the SHA-256 of its file.
        error: Why it cannot be used; None if it can.
        kind: What is wrong, in a word: 'empty', 'truncated', 'too large' or 'unreadable'.
        size: Width and height, upright.
        channels: Of the file, alpha included.
        bits: Of a value: 1, 8, 16, '32 float' ..
        mode: Of its colours, as Pillow calls it, or 'bands'.
        transparent: Whether it has an alpha channel or a transparent colour.
        orientation: By EXIF, from 1.
        deep: Whether ``pixels`` are its values, because it has more than 8 bits or other channels than training reads.
        pixels: ``(H, W, C)``, RGB unless deep; None if it cannot be used.
    """

    suffix: str
    digest: int
    error: str | None = None
    kind: str | None = None
    size: tuple[int, int] = (0, 0)
    channels: int = 0
    bits: str = ''
    mode: str = ''
    transparent: bool = False
    orientation: int = 1
    deep: bool = False
    pixels: np.ndarray | None = None

    @property
    def flat(self) -> bool:
        """Whether all pixels are the same."""
        return bool((self.pixels == self.pixels[:1, :1]).all())

    @property
    def bright(self) -> float:
        """What 99 of 100 pixels are below, in the brightest channel."""
        values = self.pixels[np.isfinite(self.pixels).all(axis=2)] if self.pixels.dtype.kind == 'f' else self.pixels
        return float(np.percentile(values.max(axis=-1), 99)) if values.size else 0.0

    def difference_hash(self) -> int:
        """64 bits that similar pictures share: where a picture of 9 x 8 pixels gets brighter to the right."""
        grey = self.pixels.astype(np.float32).mean(axis=2)
        small = cv2.resize(np.nan_to_num(grey), (9, 8), interpolation=cv2.INTER_AREA)
        return int(np.packbits(small[:, 1:] > small[:, :-1]).view('>u8')[0])


def examine(content: bytes | np.ndarray, name: str) -> Record:
    """Look at an image; what is wrong with it is in the record, nothing is raised.

    Args:
        content: Of its file, or its pixels ``(H, W, C)``.
        name: Of the image; its suffix is told.
    """
    suffix = os.path.splitext(name)[1].lower() or 'without suffix'
    data = content if isinstance(content, bytes) else np.ascontiguousarray(content).tobytes()
    record = Record(suffix, int.from_bytes(hashlib.sha256(data).digest()[:8], 'little'))
    try:
        if isinstance(content, bytes):
            _describe(record, content)
            _load(record, content)
        else:
            record.mode, record.pixels, record.deep = 'bands', content, True
            record.bits, record.channels = _bits(content.dtype), content.shape[2]
        record.size = record.pixels.shape[1::-1]
    except Exception as error:  # decoders raise whatever they stumble over
        record.error = ' '.join(str(getattr(error, 'reason', None) or error or type(error).__name__).split())
        record.kind = _kind(content, record.error)
        record.pixels = None
    return record


def _describe(record: Record, content: bytes) -> None:
    """What the header says, as far as Pillow reads it."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            image = Image.open(io.BytesIO(content))
        except Exception:  # such as a TIFF file with many bands
            return
        record.mode = image.mode
        record.channels = len(image.getbands())
        record.bits = {'1': '1', 'I;16': '16', 'I;16B': '16', 'I': '32', 'F': '32 float'}.get(image.mode, '8')
        record.transparent = 'transparency' in image.info or image.mode in ('RGBA', 'LA', 'PA', 'RGBa', 'La')
        try:
            record.orientation = int(image.getexif().get(ORIENTATION, 1))
        except Exception:  # whatever the parsers stumble over
            record.orientation = 1


def _load(record: Record, content: bytes) -> None:
    """Its pixels, by the way that suits them."""
    if record.mode.startswith(('I', 'F')) or content.startswith(NUMPY_MARK) or _may_be_deep(content):
        values = read_bands(content, MAX_PIXELS)
        if values.dtype.kind == 'f' and not np.isfinite(values).any():
            raise BadImageError('none of its values is a number')
        if values.dtype != np.uint8 or not record.mode:  # Pillow does not know it
            record.mode = record.mode or 'bands'
            record.channels, record.bits, record.deep = values.shape[2], _bits(values.dtype), True
            record.pixels = values
            return
    record.pixels = decode(content, MAX_PIXELS)[..., ::-1]


def _may_be_deep(content: bytes) -> bool:
    """Whether a file is a PNG of 16 bits, of which Pillow's mode keeps quiet where there are colours, or a TIFF."""
    return (content.startswith(PNG_MARK) and content[24:25] == b'\x10') or content[:4] in TIFF_MARKS


def _bits(dtype: np.dtype) -> str:
    return f'{dtype.itemsize * 8}' + {'f': ' float', 'i': ' signed'}.get(dtype.kind, '')


def _kind(content: bytes | np.ndarray, reason: str) -> str:
    if isinstance(content, bytes) and not content:
        return 'empty'
    words = reason.lower()
    if 'are more than' in words or 'exceeds limit' in words:
        return 'too large'
    return 'truncated' if 'truncat' in words or 'broken data stream' in words or 'not enough' in words else 'unreadable'
