"""Image files of every kind, made on the spot."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def photo(size=(48, 40), seed=0):
    """Smooth enough for JPEG, and no two quadrants are alike."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def encoded(image, format='JPEG', **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def bomb():
    """A PNG of a few bytes that says it has 50,000 x 50,000 pixels."""

    def chunk(name, data):
        return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))

    header = chunk(b'IHDR', struct.pack('>IIBBBBB', 50_000, 50_000, 8, 2, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + header + chunk(b'IDAT', zlib.compress(bytes(10**6))) + chunk(b'IEND', b'')


def with_thumbnail(image):
    """A JPEG with another, whole JPEG in its EXIF data, as cameras write it."""
    exif = b'Exif\x00\x00' + encoded(image.resize((16, 16)))
    plain = encoded(image)
    return plain[:2] + b'\xff\xe1' + struct.pack('>H', len(exif) + 2) + exif + plain[2:]


def bad_files():
    """Contents of files that cannot be used, by what is wrong with them."""
    jpeg, thumbnail, png = encoded(photo()), with_thumbnail(photo()), encoded(photo(), 'PNG')
    return {
        'empty.jpg': b'',
        'garbage.jpg': np.random.default_rng(0).bytes(2000),
        'text.png': b'<html>not found</html>',
        'truncated.jpg': jpeg[: len(jpeg) * 2 // 3],
        'header_only.jpg': jpeg[:100],
        'truncated_thumbnail.jpg': thumbnail[: len(thumbnail) - 200],
        'truncated.png': png[: len(png) // 2],
        'truncated.bmp': encoded(photo(), 'BMP')[:-1000],
        'bomb.png': bomb(),
    }
