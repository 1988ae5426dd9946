import time

import numpy as np
import pytest
from image_files import bad_files, encoded, photo, with_thumbnail
from mmcv.transforms import LoadImageFromFile
from PIL import Image

from poa_mm.datasets import BadImageError, SafeLoadImageFromFile


def load(path, **options):
    return SafeLoadImageFromFile(**options)(dict(img_path=str(path)))


@pytest.mark.parametrize('name', bad_files())
def test_bad_file_has_one_error_with_its_name(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(bad_files()[name])
    start = time.perf_counter()
    with pytest.raises(BadImageError, match=name) as error:
        load(path)
    assert time.perf_counter() - start < 1
    assert error.value.path == str(path)
    assert error.value.reason


def test_missing_file(tmp_path):
    with pytest.raises(BadImageError, match=r'nope\.jpg'):
        load(tmp_path / 'nope.jpg')


def test_bomb_is_not_decoded(tmp_path, monkeypatch):
    path = tmp_path / 'large.png'
    photo((48, 40)).save(path)
    monkeypatch.setattr('mmcv.imfrombytes', lambda *args, **kwargs: pytest.fail('decoded'))
    with pytest.raises(BadImageError, match='48 x 40 pixels are more than 1919'):
        load(path, max_pixels=48 * 40 - 1)


def test_limit_is_checked():
    with pytest.raises(ValueError, match='max_pixels 0'):
        SafeLoadImageFromFile(max_pixels=0)


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    return encoded(photo().rotate(90, expand=True), exif=exif, quality=95)


GOOD = {
    'plain.jpg': encoded(photo(), quality=95),
    'progressive.jpg': encoded(photo(), quality=95, progressive=True),
    'thumbnail.jpg': with_thumbnail(photo()),
    'trailing.jpg': encoded(photo(), quality=95) + b'more \xff\xda data',
    'cmyk.jpg': encoded(photo().convert('CMYK'), quality=95),
    'rotated.jpg': rotated(),
    'plain.png': encoded(photo(), 'PNG'),
    'trailing.png': encoded(photo(), 'PNG') + b'more',
    'palette.png': encoded(photo().quantize(256), 'PNG'),
    'alpha.png': encoded(photo().convert('RGBA'), 'PNG'),
    'plain.bmp': encoded(photo(), 'BMP'),
    'plain.tif': encoded(photo(), 'TIFF'),
    'plain.webp': encoded(photo(), 'WEBP', lossless=True),
}


@pytest.mark.parametrize('name', GOOD)
def test_whole_file_is_decoded_as_before_into_8_bits_bgr_upright(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(GOOD[name])
    found = load(path)
    expected = LoadImageFromFile()(dict(img_path=str(path)))
    np.testing.assert_array_equal(found['img'], expected['img'])
    assert {key: found[key] for key in ('img_shape', 'ori_shape')} == dict(img_shape=(40, 48), ori_shape=(40, 48))
    assert found['img'].dtype == np.uint8
    difference = np.abs(found['img'][..., ::-1].astype(int) - np.asarray(photo()))
    assert difference.mean() < 8


@pytest.mark.parametrize('mode', ['I;16', 'L', '1'])
def test_grey_and_16_bits_become_three_equal_channels_of_8(tmp_path, mode):
    grey = np.linspace(0, 255, 48 * 40).reshape(40, 48).astype(np.uint8)
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == 'I;16' else Image.fromarray(grey).convert(mode)
    image.save(tmp_path / 'grey.png')
    found = load(tmp_path / 'grey.png')['img']
    assert found.shape == (40, 48, 3) and found.dtype == np.uint8
    assert (found == found[..., :1]).all()
    if mode != '1':
        assert np.abs(found[..., 0].astype(int) - grey).max() <= 1


def test_options_that_would_do_nothing_are_refused():
    with pytest.raises(ValueError, match='ignore_empty'):
        SafeLoadImageFromFile(ignore_empty=True)
