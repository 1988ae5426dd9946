"""What is in a file is what comes out of it, whatever the file is. The picture below is stored in many ways."""

import contextlib
import io

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import encoded
from PIL import Image, ImageCms

from poa_mm.datasets import BadImageError, SafeLoadImageFromFile
from poa_mm.datasets.decoding import FORMATS, decode, turn
from poa_mm.datasets.listing import SUFFIXES

HEIGHT, WIDTH = 30, 44
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
RGB = np.stack([255 * COLUMNS / (WIDTH - 1), 255 * ROWS / (HEIGHT - 1), 255 - 255 * COLUMNS / (WIDTH - 1)], -1).astype(
    np.uint8
)
PICTURE = Image.fromarray(RGB)
GREY = np.asarray(PICTURE.convert('L'))
ALPHA = (255 * ROWS / (HEIGHT - 1)).astype(np.uint8)
SEE_THROUGH = np.dstack([RGB, ALPHA])
ON_WHITE = RGB * (ALPHA[..., None] / 255) + 255 * (1 - ALPHA[..., None] / 255)
INK = np.dstack([np.zeros_like(RGB), np.where(GREY > 127, 255, 0).astype(np.uint8)])  # black on nothing
INK_ON_WHITE = np.where(GREY > 127, 0, 255)


def grey(levels):
    return np.repeat(levels[..., None], 3, axis=2)


def tiff(values, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def by_opencv(suffix, values):
    return cv2.imencode(suffix, values)[1].tobytes()


def decoded(content, **options):
    image = decode(content, 10**6, **options)
    assert image.dtype == np.uint8 and image.flags.c_contiguous
    return image[..., ::-1]


def close(found, expected, tolerance):
    assert found.shape == expected.shape
    difference = np.abs(found.astype(float) - expected)
    assert difference.mean() <= tolerance, f'off by {difference.mean():.1f} on average'


# --- colours ---------------------------------------------------------------------------------
def lab():
    to_lab = ImageCms.buildTransform(ImageCms.createProfile('sRGB'), ImageCms.createProfile('LAB'), 'RGB', 'LAB')
    return encoded(ImageCms.applyTransform(PICTURE, to_lab), 'TIFF')


def pages():
    return encoded(PICTURE, 'TIFF', save_all=True, append_images=[PICTURE.rotate(180)])


def bands(number, dtype=np.uint8, factor=1, **options):
    values = np.dstack([RGB] + [GREY] * (number - 3)).astype(dtype) * dtype(factor)
    return tiff(values, **options)


OTHERS = dict(extrasamples=['unspecified'])
COLOUR = {  # file, and the mean difference that its coding makes
    'jpeg': (encoded(PICTURE, quality=95), 2),
    'progressive jpeg': (encoded(PICTURE, quality=95, progressive=True), 2),
    'cmyk jpeg': (encoded(PICTURE.convert('CMYK'), quality=95), 2),
    'mpo': (encoded(PICTURE, 'MPO', quality=95), 2),
    'png': (encoded(PICTURE, 'PNG'), 0),
    'palette png': (encoded(PICTURE.quantize(256), 'PNG'), 6),
    '4 bit palette png': (encoded(PICTURE.quantize(16), 'PNG', bits=4), 25),
    'animated png': (encoded(PICTURE, 'PNG', save_all=True, append_images=[PICTURE.rotate(180)]), 0),
    '16 bit png': (by_opencv('.png', RGB[..., ::-1].astype(np.uint16) * 257), 0.01),
    '12 bits in 16 png': (by_opencv('.png', RGB[..., ::-1].astype(np.uint16) * 16), 1),
    'bmp': (encoded(PICTURE, 'BMP'), 0),
    'palette bmp': (encoded(PICTURE.quantize(256), 'BMP'), 6),
    'gif': (encoded(PICTURE, 'GIF'), 6),
    'animated gif': (encoded(PICTURE, 'GIF', save_all=True, append_images=[PICTURE.rotate(180)]), 6),
    'webp': (encoded(PICTURE, 'WEBP', quality=95), 3),
    'animated webp': (encoded(PICTURE, 'WEBP', save_all=True, append_images=[PICTURE.rotate(180)], quality=95), 3),
    'avif': (encoded(PICTURE, 'AVIF', quality=90), 3),
    'jp2': (encoded(PICTURE, 'JPEG2000'), 0),
    'ico': (encoded(PICTURE, 'ICO', sizes=[(WIDTH, HEIGHT)]), 0),
    'tga': (encoded(PICTURE, 'TGA'), 0),
    'packed tga': (encoded(PICTURE, 'TGA', compression='tga_rle'), 0),
    'pcx': (encoded(PICTURE, 'PCX'), 0),
    'sgi': (encoded(PICTURE, 'SGI'), 0),
    'ppm': (encoded(PICTURE, 'PPM'), 0),
    'ppm of 16 bits': (by_opencv('.ppm', RGB[..., ::-1].astype(np.uint16) * 257), 0.01),
    'ppm of 12 bits in 16': (by_opencv('.ppm', RGB[..., ::-1].astype(np.uint16) * 16), 1),
    'ppm of 100 levels': (b'P6 # a comment\n44\t30\n100\n' + np.rint(RGB * (100 / 255)).astype(np.uint8).tobytes(), 2),
    'ppm of 1000 levels': (b'P6\n#x\n44 30 1000\n' + np.rint(RGB * (1000 / 255)).astype('>u2').tobytes(), 1),
    'ppm in words': (b'P3 44 30 255\n' + ' '.join(map(str, RGB.ravel())).encode(), 0),
    'tiff': (encoded(PICTURE, 'TIFF'), 0),
    'lab tiff': (lab(), 3),
    'cmyk tiff': (encoded(PICTURE.convert('CMYK'), 'TIFF'), 0),
    'cmyk tiff of 16 bits': (
        tiff(
            np.asarray(PICTURE.convert('CMYK')).astype(np.uint16) * 257, photometric='separated', planarconfig='contig'
        ),
        0.01,
    ),
    'ycbcr tiff': (encoded(PICTURE.convert('YCbCr'), 'TIFF'), 3),
    'palette tiff': (encoded(PICTURE.quantize(256), 'TIFF'), 6),
    'tiff of two pages': (pages(), 0),
    **{f'{name} tiff': (encoded(PICTURE, 'TIFF', compression=name), 3) for name in ('jpeg', 'tiff_lzw', 'packbits')},
    **{
        f'{name} tiff by tifffile': (tiff(RGB, photometric='rgb', compression=name), 3)
        for name in ('zstd', 'deflate', 'lzma', 'webp', 'jpegxl', 'jpeg2000', 'lerc')
    },
    'predicted tiff': (tiff(RGB, photometric='rgb', compression='deflate', predictor=True), 0),
    'tiled tiff': (tiff(RGB, photometric='rgb', tile=(16, 16)), 0),
    'tiled zstd tiff of 16 bits': (
        tiff(RGB.astype(np.uint16) * 257, photometric='rgb', tile=(16, 16), compression='zstd'),
        0.01,
    ),
    'bigtiff': (tiff(RGB, photometric='rgb', bigtiff=True), 0),
    'bigtiff of 12 bits in 16': (tiff(RGB.astype(np.uint16) * 16, photometric='rgb', bigtiff=True), 1),
    'big endian tiff': (tiff(RGB, photometric='rgb', byteorder='>'), 0),
    'planar tiff': (tiff(RGB.transpose(2, 0, 1).copy(), photometric='rgb', planarconfig='separate'), 0),
    'planar tiff of floats': (
        tiff(RGB.transpose(2, 0, 1).astype(np.float32) / 255, photometric='rgb', planarconfig='separate'),
        0,
    ),
    'tiff of floats': (tiff(RGB.astype(np.float32) / 255, photometric='rgb'), 0),
    'tiff of halves': (tiff(RGB.astype(np.float16) / 255, photometric='rgb'), 1),
    'tiff of 16 bits': (tiff(RGB.astype(np.uint16) * 257, photometric='rgb'), 0.01),
    '4 bands': (bands(4, photometric='rgb', **OTHERS), 0),
    '5 bands': (bands(5, photometric='rgb', extrasamples=['unspecified'] * 2), 0),
    '4 bands of 16 bits': (bands(4, np.uint16, 257, photometric='rgb', **OTHERS), 0.01),
    '13 bands of 16 bits': (bands(13, np.uint16, 257, photometric='minisblack', planarconfig='contig'), 0.01),
    '8 bands of floats': (bands(8, np.float32, 1 / 255, photometric='minisblack', planarconfig='contig'), 0.01),
    '6 planar bands': (
        tiff(np.stack([*RGB.transpose(2, 0, 1), GREY, GREY, GREY]), photometric='minisblack', planarconfig='separate'),
        0,
    ),
}


@pytest.mark.parametrize('name', COLOUR)
def test_colours(name):
    content, tolerance = COLOUR[name]
    close(decoded(content), RGB, tolerance)


FULL = GREY.astype(np.uint16)
BILEVEL = {'png': {}, 'TIFF': {}, 'TIFF ': dict(compression='group4'), 'PPM': {}, 'BMP': {}}
GREYS = {
    'png': (encoded(Image.fromarray(GREY), 'PNG'), 0),
    'jpeg': (encoded(Image.fromarray(GREY), quality=95), 2),
    'tiff': (encoded(Image.fromarray(GREY), 'TIFF'), 0),
    'white is zero': (tiff(255 - GREY, photometric='miniswhite'), 0),
    'white is zero, 16 bits': (tiff(65535 - FULL * 257, photometric='miniswhite'), 0.01),
    'png, 16 bits': (by_opencv('.png', FULL * 257), 0),
    'png, 14 bits in 16': (by_opencv('.png', FULL * 64), 1),
    'png, 12 bits in 16': (by_opencv('.png', FULL * 16), 1),
    'png, 10 bits in 16': (by_opencv('.png', FULL * 4), 1),
    'png, 8 bits in 16': (by_opencv('.png', FULL), 0),
    'pgm, 16 bits': (by_opencv('.pgm', FULL * 257), 0),
    'pgm, 12 bits in 16': (by_opencv('.pgm', FULL * 16), 1),
    'pgm of 4095': (b'P5 44 30 4095\n' + np.rint(GREY * (4095 / 255)).astype('>u2').tobytes(), 0),
    'jp2, 16 bits': (encoded(Image.fromarray(FULL * 257), 'JPEG2000'), 0),
    'tiff, 12 bits in 16': (tiff(FULL * 16), 1),
    'tiff, 10 bits in 16': (tiff(FULL * 4), 1),
    'tiff, big endian': (tiff(FULL * 257, byteorder='>'), 0),
    'tiff, deflate, 12 bits in 16': (tiff(FULL * 16, compression='deflate', predictor=True), 1),
    'tiff, 32 bits': (tiff(GREY.astype(np.uint32)), 0),
    'tiff, 32 bits in full': (tiff(GREY.astype(np.uint32) * 16843009), 30),
    'tiff, 32 bits with a sign': (tiff(GREY.astype(np.int32)), 0),
    'tiff, 16 bits with a sign': (tiff(GREY.astype(np.int16) * 128), 1),
    'tiff, 12 bits with a sign': (tiff(GREY.astype(np.int16) * 16), 1),
    'tiff, 8 bits with a sign': (tiff((GREY // 2).astype(np.int8)), 1.5),
    'tiff, fractions': (tiff(GREY.astype(np.float32) / 255), 0),
    'tiff, doubles': (tiff(GREY.astype(np.float64) / 255), 0),
    'tiff, levels as floats': (tiff(GREY.astype(np.float32)), 0),
    'tiff, 16 bits as floats': (tiff(GREY.astype(np.float32) * 257), 0),
    'tiff, two bands': (
        tiff(
            np.dstack([GREY, GREY // 3]), photometric='minisblack', planarconfig='contig', extrasamples=['unspecified']
        ),
        0,
    ),
    'tiff, two bands of 16 bits': (
        tiff(
            np.dstack([FULL * 257, FULL]), photometric='minisblack', planarconfig='contig', extrasamples=['unspecified']
        ),
        0,
    ),
}


@pytest.mark.parametrize('name', GREYS)
def test_greys(name):
    content, tolerance = GREYS[name]
    found = decoded(content)
    assert (found == found[..., :1]).all()
    close(found, grey(GREY), tolerance)


@pytest.mark.parametrize('name', BILEVEL)
def test_one_bit(name):
    content = encoded(Image.fromarray(GREY > 127), name.strip().upper(), **BILEVEL[name])
    close(decoded(content), grey(np.where(GREY > 127, 255, 0)), 0)


# --- levels ----------------------------------------------------------------------------------
def test_below_zero_is_stretched():
    content = tiff(GREY.astype(np.int16) - 100)
    low, high = int(GREY.min()), int(GREY.max())
    close(decoded(content), grey((GREY - low) * (255 / (high - low))), 0.5)


def test_a_range_may_be_given():
    for content in (tiff(FULL * 4), by_opencv('.png', FULL * 4), tiff(GREY.astype(np.float32) * 4)):
        close(decoded(content, value_range=(0, 4095)), grey(GREY / 4), 1)
    close(decoded(encoded(PICTURE, 'PNG'), value_range=(0, 4095)), RGB, 0)  # of more than 8 bits only


def test_values_that_are_none_are_black_and_do_not_count():
    values = GREY.astype(np.float32) / 255
    values[:5] = np.nan
    values[5] = np.inf
    expected = grey(GREY).copy()
    expected[:6] = 0
    close(decoded(tiff(values)), expected, 0)
    values = FULL * 16
    values[:6] = 65535
    content = tiff(values, extratags=[(42113, 's', 0, '65535', True)])
    close(decoded(content), expected, 1)
    with pytest.raises(ValueError, match='no pixel has a value'):
        decoded(tiff(np.full((4, 4), np.nan, np.float32)))


@settings(max_examples=60, deadline=None)
@given(
    bits=st.sampled_from([8, 10, 12, 14, 16]),
    seed=st.integers(0, 1000),
    colour=st.booleans(),
    kind=st.sampled_from(['png', 'tiff', 'big endian tiff', 'tiled tiff', 'ppm']),
)
def test_every_depth_in_16_bits_is_seen(bits, seed, colour, kind):
    """Whatever the container, the same picture comes out."""
    rng = np.random.default_rng(seed)
    full = 2**bits - 1
    values = rng.integers(0, full + 1, (20, 24, 3) if colour else (20, 24)).astype(np.uint16)
    values[0, 0] = full
    if kind in ('png', 'ppm'):
        stored = values[..., ::-1] if colour else values
        content = by_opencv('.png' if kind == 'png' else '.ppm' if colour else '.pgm', np.ascontiguousarray(stored))
    else:
        options = {'big endian tiff': dict(byteorder='>'), 'tiled tiff': dict(tile=(16, 16))}.get(kind, {})
        content = tiff(values, photometric='rgb' if colour else 'minisblack', **options)
    close(decoded(content), np.rint((values if colour else grey(values)) * (255 / full)), 0)


# --- transparency ----------------------------------------------------------------------------
def see_through(pixels):
    """The same see-through picture in every format that has it."""
    picture = Image.fromarray(pixels)
    deep = pixels.astype(np.uint16) * 257
    premultiplied = pixels.copy()
    premultiplied[..., :3] = np.rint(pixels[..., :3] * (pixels[..., 3:] / 255.0))
    return {
        'png': encoded(picture, 'PNG'),
        'png of 16 bits': by_opencv('.png', deep[..., [2, 1, 0, 3]]),
        'tiff': encoded(picture, 'TIFF'),
        'lzw tiff': encoded(picture, 'TIFF', compression='tiff_lzw'),
        'tiff of 16 bits': tiff(deep, photometric='rgb', extrasamples=['unassalpha']),
        'zstd tiff': tiff(pixels, photometric='rgb', extrasamples=['unassalpha'], compression='zstd'),
        'premultiplied tiff': tiff(premultiplied, photometric='rgb', extrasamples=['assocalpha']),
        'premultiplied tiff of 16 bits': tiff(
            np.rint(deep * np.where([1, 1, 1, 0], deep[..., 3:] / 65535, 1)).astype(np.uint16),
            photometric='rgb',
            extrasamples=['assocalpha'],
        ),
        'tiff of floats': tiff(pixels.astype(np.float32) / 255, photometric='rgb', extrasamples=['unassalpha']),
        'webp': encoded(picture, 'WEBP', lossless=True, exact=True),
        'avif': encoded(picture, 'AVIF', quality=95),
        'jp2': encoded(picture, 'JPEG2000'),
        'ico': encoded(picture, 'ICO', sizes=[(WIDTH, HEIGHT)]),
        'tga': encoded(picture, 'TGA'),
        'sgi': encoded(picture, 'SGI'),
        'qoi': encoded(picture, 'QOI'),
    }


@pytest.mark.parametrize('name', see_through(SEE_THROUGH))
def test_see_through_is_on_white(name):
    close(decoded(see_through(SEE_THROUGH)[name]), ON_WHITE, 2.5)


@pytest.mark.parametrize('name', see_through(INK))
def test_black_ink_on_nothing_is_seen(name):
    close(decoded(see_through(INK)[name]), grey(INK_ON_WHITE), 2.5)


def test_other_ways_to_be_see_through():
    grey_alpha = Image.fromarray(np.dstack([GREY, ALPHA]))
    expected = grey(GREY) * (ALPHA[..., None] / 255) + 255 * (1 - ALPHA[..., None] / 255)
    for content in (encoded(grey_alpha, 'PNG'), encoded(grey_alpha, 'TIFF')):
        close(decoded(content), expected, 1)
    palette = Image.fromarray((ROWS > 10).astype(np.uint8), 'L').convert('P')
    palette.putpalette([9, 9, 9, 0, 0, 0])
    for kind in ('PNG', 'GIF'):
        close(decoded(encoded(palette, kind, transparency=0)), grey(np.where(ROWS > 10, 0, 255)), 0)
    keyed = encoded(Image.fromarray(np.where(ROWS > 10, 0, 7).astype(np.uint8)), 'PNG', transparency=7)
    close(decoded(keyed), grey(np.where(ROWS > 10, 0, 255)), 0)


def test_another_ground():
    content = see_through(INK)['png']
    close(decoded(content, ground=128), grey(np.where(INK_ON_WHITE == 255, 128, 0)), 0)
    assert (decoded(content, ground=(255, 0, 10))[INK_ON_WHITE == 255] == (255, 0, 10)).all()


@pytest.mark.parametrize('name', ['png', 'png of 16 bits', 'tiff', 'tiff of 16 bits', 'webp', 'ico', 'tga', 'qoi'])
def test_an_image_that_is_nowhere_to_be_seen_keeps_its_colours(name):
    """Programs that know no alpha leave its bytes at 0."""
    close(decoded(see_through(np.dstack([RGB, np.zeros_like(GREY)]))[name]), RGB, 0.01)


# --- orientation -----------------------------------------------------------------------------
INVERSE = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}


def turned(kind, orientation, **options):
    exif = Image.Exif()
    exif[0x112] = orientation
    picture = PICTURE if orientation == 1 else PICTURE.transpose(INVERSE[orientation])
    if kind == 'TIFF':
        return encoded(picture, kind, tiffinfo={274: orientation}, **options)
    if kind == 'deep TIFF':
        return tiff(
            np.asarray(picture).astype(np.uint16) * 257, photometric='rgb', extratags=[(274, 'H', 1, orientation, True)]
        )
    if kind == 'deep PNG':
        return encoded(Image.fromarray(np.asarray(picture.convert('L')).astype(np.uint16) * 257), 'PNG', exif=exif)
    return encoded(picture, kind, exif=exif, **options)


TURNED = [
    ('JPEG', dict(quality=98)),
    ('PNG', {}),
    ('deep PNG', {}),
    ('WEBP', dict(lossless=True)),
    ('AVIF', dict(quality=95)),
    ('TIFF', {}),
    ('TIFF', dict(compression='tiff_lzw')),
    ('deep TIFF', {}),
]


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('kind', range(len(TURNED)))
def test_upright(kind, orientation):
    kind, options = TURNED[kind]
    expected = grey(GREY) if kind == 'deep PNG' else RGB
    close(decoded(turned(kind, orientation, **options)), expected, 2.5)


@pytest.mark.parametrize('orientation', [0, 9, 255])
def test_an_orientation_that_is_none(orientation):
    assert (turn(RGB, orientation) == RGB).all()


def test_metadata_that_is_garbage_harms_no_image():
    for kind, options in (('PNG', {}), ('WEBP', dict(lossless=True)), ('JPEG', dict(quality=98))):
        close(decoded(encoded(PICTURE, kind, exif=b'Exif\0\0II*\0\xff\xff\xff\xff', **options)), RGB, 2)


# --- what is no image ------------------------------------------------------------------------
TRUNCATED = {
    **{f'COLOUR {name}': content for name, (content, _) in COLOUR.items()},
    **{f'GREYS {name}': content for name, (content, _) in GREYS.items()},
    **{f'see-through {name}': content for name, content in see_through(SEE_THROUGH).items()},
}


@pytest.mark.parametrize('name', TRUNCATED)
def test_truncated_files_give_the_whole_image_or_an_error(name):
    """Where the file is cut into what comes behind the image (a second frame, metadata), the image is whole."""
    content = TRUNCATED[name]
    whole = decoded(content)
    for share in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97):
        try:
            found = decoded(content[: int(len(content) * share)])
        except Exception:
            continue
        np.testing.assert_array_equal(found, whole)


def test_a_damaged_animation_does_not_crash_the_process():
    content = bytearray(COLOUR['animated png'][0])
    start = content.index(b'IDAT') + 4
    for position in range(start, start + 60, 3):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        with contextlib.suppress(Exception):
            decoded(bytes(damaged))


def test_programs_are_not_run_to_read_an_image():
    assert not {'EPS', 'PDF', 'WMF'} & set(FORMATS)
    with pytest.raises(BadImageError, match='no image'):
        decoded(encoded(PICTURE, 'EPS'))


def test_what_is_no_picture_is_named():
    with pytest.raises(BadImageError, match='empty'):
        decoded(b'')
    with pytest.raises(ValueError, match='photometric CIELAB'):
        decoded(tiff(RGB.astype(np.uint16), photometric='cielab'))
    with pytest.raises(ValueError, match='axes ZYX'):
        decoded(tiff(np.zeros((16, 16, 16), np.float32), volumetric=True, tile=(16, 16, 16)))


@pytest.mark.parametrize('options', [{}, dict(photometric='minisblack', planarconfig='contig'), dict(tile=(512, 512))])
def test_a_large_tiff_is_not_decoded(monkeypatch, options):
    shape = (1100, 1000, 13) if 'planarconfig' in options else (1100, 1000)
    content = tiff(np.zeros(shape, np.float32), compression='zstd', **options)
    monkeypatch.setattr('tifffile.TiffPage.asarray', lambda *args, **kwargs: pytest.fail('decoded'))
    with pytest.raises(BadImageError, match='1000 x 1100 pixels are more than 1000000'):
        decoded(content)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_input_does_worse_than_an_error(tmp_path_factory, data):
    """Files with bytes overwritten end in an image or in a BadImageError that names the file."""
    content = bytearray(TRUNCATED[data.draw(st.sampled_from(sorted(TRUNCATED)))])
    for _ in range(data.draw(st.integers(0, 6))):
        content[data.draw(st.integers(0, min(len(content), 400) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / 'fuzzed'
    path.write_bytes(bytes(content))
    try:
        image = SafeLoadImageFromFile(max_pixels=10**5)(dict(img_path=str(path)))['img']
    except BadImageError as error:
        assert error.path == str(path) and error.reason
    else:
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


def test_every_suffix_that_counts_as_an_image_is_decoded():
    """One file of each suffix, written by Pillow for that suffix."""
    Image.init()
    for suffix in SUFFIXES:
        kind = Image.EXTENSION[suffix]
        picture = PICTURE.convert('F') if suffix == '.pfm' else PICTURE.convert('1') if suffix == '.pbm' else PICTURE
        options = dict(sizes=[(WIDTH, HEIGHT)]) if kind == 'ICO' else {}
        found = decoded(encoded(picture, kind, **options))
        assert found.shape == RGB.shape and found.std() > 20, suffix


@pytest.mark.parametrize(
    'options', [dict(ground=300), dict(ground=(1, 2)), dict(value_range=(5, 5)), dict(value_range=(1,))]
)
def test_options_are_checked(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SafeLoadImageFromFile(**options)
