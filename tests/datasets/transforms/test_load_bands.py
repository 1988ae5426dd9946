import numpy as np
import pytest
from mmcv.transforms import Compose
from mmengine.registry import TRANSFORMS, init_default_scope

from poa_mm.datasets import BadImageError, LoadBands
from poa_mm.datasets.transforms.fast import (
    FastRandomFlip,
    FastRandomGrayscale,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    blur,
    resize,
)

RNG = np.random.default_rng(0)


@pytest.fixture
def load(tmp_path):
    def load(values, value_range, in_channels=None):
        np.save(tmp_path / 'a.npy', values)
        loader = LoadBands(values.shape[2] if in_channels is None else in_channels, value_range)
        return loader(dict(img_path=str(tmp_path / 'a.npy')))['img']

    return load


@pytest.mark.parametrize('channels', [1, 2, 4, 13])
def test_values_keep_their_precision(load, channels):
    values = RNG.integers(0, 4096, (20, 30, channels), np.uint16)
    image = load(values, (0, 4095))
    assert image.dtype == np.float32 and image.flags.c_contiguous
    np.testing.assert_array_equal(np.rint(image * (4095 / 255)).astype(np.uint16), values)  # all 4096 levels


def test_a_range_for_each_band(load):
    values = RNG.normal(0, 100, (20, 30, 4)).astype(np.float32)
    ranges = [(-100, 100), (0, 50), (-1, 1), (-300, 300)]
    expected = np.stack([(values[..., i] - lo) * (255 / (hi - lo)) for i, (lo, hi) in enumerate(ranges)], axis=2)
    np.testing.assert_allclose(load(values, ranges), expected.clip(0, 255), atol=1e-3)


def test_what_is_not_finite_is_black(load):
    values = np.full((4, 4, 2), 5.0)
    values[0, 0], values[1, 1, 0], values[2, 2, 1] = np.nan, np.inf, -np.inf
    image = load(values, (0, 10))
    assert np.isfinite(image).all()
    assert image[0, 0].tolist() == [0, 0] and image[1, 1, 0] == 255 and image[2, 2, 1] == 0


def test_three_bands_come_in_the_order_of_openmmlab(load):
    values = RNG.integers(0, 4096, (20, 30, 3), np.uint16)
    np.testing.assert_allclose(load(values, (0, 255)), values[..., ::-1].clip(0, 255))


def test_content_or_pixels_without_a_file():
    values = RNG.integers(0, 256, (6, 5, 7), np.uint8)
    image = LoadBands(7, (0, 255))(dict(img=values, img_path='row 3'))['img']
    np.testing.assert_array_equal(image, values)


def test_another_number_of_bands(load):
    with pytest.raises(BadImageError, match=r'a\.npy: has 4 bands, in_channels is 13'):
        load(np.zeros((5, 5, 4), np.uint16), (0, 4095), in_channels=13)
    with pytest.raises(BadImageError, match='nowhere'):
        LoadBands(3, (0, 1))(dict(img_path='/nowhere.tif'))


@pytest.mark.parametrize('value_range', [(0,), (5, 5), (9, 0), [(0, 1)] * 3, 7, [(0, 1), (1, 0), (0, 1), (0, 1)]])
def test_wrong_ranges(value_range):
    with pytest.raises(ValueError, match='rising pair nor 4 of them'):
        LoadBands(4, value_range)


# --- augmentations ---------------------------------------------------------------------------
def images(channels):
    return (RNG.random((30, 28, channels)) * 255).astype(np.float32)


@pytest.mark.parametrize('channels', [1, 2, 4, 5, 13])
def test_augmentations_of_any_number_of_channels(channels):
    """Each channel by itself gives the same."""
    image = images(channels)
    before = image.copy()
    for change in (
        lambda x: resize(x, (16, 16), 'bicubic'),
        lambda x: blur(x, 1.3),
        FastRandomFlip.apply,
        lambda x: adjust_brightness(x, 1.4),
    ):
        found = change(image)
        assert found.dtype == np.float32 and found.shape[2:] == (channels,)
        assert found.min() >= 0 and found.max() <= 255.001
        alone = np.concatenate([change(np.ascontiguousarray(image[..., [i]])) for i in range(channels)], axis=2)
        np.testing.assert_allclose(found, alone, atol=1e-3)
    contrast = adjust_contrast(image, 0.5)
    np.testing.assert_allclose(contrast, image.mean() + 0.5 * (image - image.mean()), atol=1e-3)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize('factor', [0.6, 1.0, 1.37])
def test_three_channels_of_float_are_changed_as_those_of_8_bits(factor):
    image = RNG.integers(0, 256, (30, 28, 3), np.uint8)
    for change in (adjust_brightness, adjust_contrast, adjust_saturation):
        exact = change(image.astype(np.float32), factor)
        np.testing.assert_allclose(exact, change(image, factor), atol=1.5)
    turned = adjust_hue(image.astype(np.float32), 0.1)
    assert np.abs(turned - adjust_hue(image, 0.1)).mean() < 2
    np.testing.assert_allclose(adjust_hue(turned, -0.1), image, atol=0.1)


@pytest.mark.parametrize('channels', [2, 4, 13])
def test_changes_of_colour_are_refused_in_words(channels):
    for change in (
        lambda x: adjust_hue(x, 0.1),
        lambda x: adjust_saturation(x, 0.5),
        FastRandomGrayscale.apply,
    ):
        with pytest.raises(ValueError, match=f'three channels, .*; these have {channels}: leave out'):
            change(images(channels))


def test_hue_of_grey_images_is_refused_in_words():
    with pytest.raises(ValueError, match='these have 1'):
        adjust_hue(images(1), 0.1)


@pytest.mark.parametrize('size', [(40, 30), (300, 280)])
@pytest.mark.parametrize('bands', [1, 13])
def test_the_pipeline_of_evaluation(tmp_path, size, bands):
    init_default_scope('mmpretrain')
    values = RNG.integers(0, 4096, (*size, bands), np.uint16)
    np.save(tmp_path / 'a.npy', values)
    steps = [
        dict(type='LoadBands', in_channels=bands, value_range=(0, 4095)),
        dict(type='ResizeEdge', scale=64, edge='short', backend='cv2', interpolation='bicubic'),
        dict(type='CenterCrop', crop_size=56),
        dict(type='PackInputs'),
    ]
    packed = Compose([TRANSFORMS.build(step) for step in steps])(dict(img_path=str(tmp_path / 'a.npy')))
    assert packed['inputs'].shape == (bands, 56, 56)
    assert packed['inputs'].is_floating_point()
