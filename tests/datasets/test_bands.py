import io

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from poa_mm.datasets.bands import read_bands

RNG = np.random.default_rng(0)


def tiff(values, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def npy(values):
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


@pytest.mark.parametrize('bands', [2, 4, 8, 13])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.int16, np.float32])
def test_tiff_by_pixel_by_plane_and_by_page(bands, dtype):
    values = (RNG.random((20, 30, bands)) * 200).astype(dtype)
    first = np.moveaxis(values, 2, 0)
    for content in (
        tiff(values, photometric='minisblack', planarconfig='contig'),
        tiff(first, photometric='minisblack', planarconfig='separate'),
        tiff(first, photometric='minisblack'),
        tiff(values, photometric='minisblack', planarconfig='contig', compression='zstd', tile=(16, 16)),
    ):
        found = read_bands(content, 10**6)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.float32])
def test_grey_tiff(dtype):
    values = (RNG.random((20, 30)) * 200).astype(dtype)
    np.testing.assert_array_equal(read_bands(tiff(values), 10**6), values[..., None])


@pytest.mark.parametrize('shape', [(20, 30), (20, 30, 13), (13, 20, 30), (20, 30, 1)])
def test_arrays(shape):
    values = RNG.integers(0, 4096, shape, np.uint16)
    found = read_bands(npy(values), 10**6)
    expected = values[..., None] if len(shape) == 2 else np.moveaxis(values, 0, -1) if shape[0] == 13 else values
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_png_of_16_bits(channels):
    values = RNG.integers(0, 65536, (20, 30, channels), np.uint16)
    swapped = values[..., [2, 1, 0, 3][:channels]] if channels > 1 else values
    found = read_bands(cv2.imencode('.png', swapped)[1].tobytes(), 10**6)
    np.testing.assert_array_equal(found, values)


def test_ordinary_images():
    image = Image.fromarray(RNG.integers(0, 256, (20, 30, 3), np.uint8))
    file = io.BytesIO()
    image.save(file, 'BMP')
    np.testing.assert_array_equal(read_bands(file.getvalue(), 10**6), np.asarray(image))


@pytest.mark.parametrize(
    'content, words',
    [
        (npy(np.zeros((2, 3, 4, 5))), r'\(2, 3, 4, 5\)'),
        (npy(np.zeros((20, 30), complex)), 'complex'),
        (npy(np.zeros((2000, 3000), np.uint8)), '6000000|more than'),
        (tiff(np.zeros((2000, 3000), np.uint8)), 'more than'),
        (tiff(RNG.integers(0, 9, (50, 50, 13), np.uint16), photometric='minisblack', planarconfig='contig')[:9000], ''),
        (npy(np.array([{}])), ''),
        (b'garbage', ''),
        (b'', ''),
    ],
)
def test_what_cannot_be_read(content, words):
    with pytest.raises(Exception, match=words):
        read_bands(content, 10**6)
