from pathlib import Path

import cv2
import numpy as np
import pytest
from mmcv.transforms import BaseTransform, Compose
from mmengine.config import Config
from mmengine.registry import TRANSFORMS, DefaultScope
from mmpretrain.datasets.transforms import ColorJitter, RandomResizedCrop
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from poa_mm.datasets import (
    FastColorJitter,
    FastGaussianBlur,
    FastMultiView,
    FastRandomFlip,
    FastRandomGrayscale,
    FastRandomResizedCrop,
)
from poa_mm.datasets.transforms import fast

CONFIGS = Path(__file__).parents[3] / 'configs'


@pytest.fixture(autouse=True)
def numpy_seed():
    np.random.seed(0)


@pytest.fixture(scope='module')
def photo():
    """A colourful part of a photograph, uint8 BGR (180, 240, 3), not writeable."""
    photo = np.ascontiguousarray(load_sample_image('china.jpg')[120:300, 160:400, ::-1])
    photo.flags.writeable = False
    return photo


def to_pil(image):
    return Image.fromarray(np.ascontiguousarray(image[..., ::-1]))


def difference(image, expected):
    """Levels between a BGR array and a PIL image or BGR array, float array."""
    if isinstance(expected, Image.Image):
        expected = np.asarray(expected)[..., ::-1]
    assert image.shape == expected.shape
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    return np.abs(image.astype(float) - expected)


def assert_rounded_differently(image, expected):
    """One level off here and there, hardly anywhere more: Pillow and torch clip overshoot at different moments."""
    error = difference(image, expected)
    assert error.mean() < 0.5
    assert (error > 2).mean() < 0.005


# --- against torchvision and Pillow ----------------------------------------------------------
@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
@pytest.mark.parametrize('size', [(96, 96), (50, 170), (240, 300)])
def test_resize(photo, interpolation, size):
    crop = photo[5:150, 7:200]  # strided
    expected = TF.resize(to_pil(crop), size, InterpolationMode(interpolation))
    assert_rounded_differently(fast.resize(crop, size, interpolation), expected)


@pytest.mark.parametrize(
    ('name', 'factors', 'most'),
    [
        ('brightness', (0, 0.6, 1, 1.4), 1),
        ('contrast', (0, 0.6, 1, 1.4), 2),
        ('saturation', (0, 0.8, 1, 1.2), 2),
    ],
)
def test_adjust(photo, name, factors, most):
    for factor in factors:
        expected = getattr(TF, f'adjust_{name}')(to_pil(photo), factor)
        assert difference(getattr(fast, f'adjust_{name}')(photo, factor), expected).max() <= most


@pytest.mark.parametrize('factor', [-0.5, -0.1, 0.003, 0.05, 0.1, 0.5])
def test_adjust_hue(photo, factor):
    error = difference(fast.adjust_hue(photo, factor), TF.adjust_hue(to_pil(photo), factor))
    assert error.mean() < 1
    assert error.max() <= 12  # both round the hue to 8 bits, each in its way


@pytest.mark.parametrize('sigma', [0.1, 0.5, 1.0, 2.0])
def test_blur(photo, sigma):
    size = 2 * int(np.ceil(3 * sigma)) + 1
    blurred = FastGaussianBlur(radius=sigma, prob=1.0)(dict(img=photo))['img']
    assert difference(blurred, TF.gaussian_blur(to_pil(photo), size, sigma)).max() <= 1
    assert abs(blurred.mean() - photo.mean()) < 0.1  # neither brighter nor darker


def test_grey_and_flip(photo):
    grey = FastRandomGrayscale(prob=1.0)(dict(img=photo))['img']
    assert difference(grey, TF.rgb_to_grayscale(to_pil(photo), num_output_channels=3)).max() <= 1
    flipped = FastRandomFlip(prob=1.0)(dict(img=photo))['img']
    assert difference(flipped, TF.hflip(to_pil(photo))).max() == 0


# --- the draws -------------------------------------------------------------------------------
def seeded(transform, image, seed):
    np.random.seed(seed)
    return transform(dict(img=image))['img']


def test_crops_are_those_of_mmpretrain(photo):
    ours = FastRandomResizedCrop((64, 80), crop_ratio_range=(0.05, 1.0))
    theirs = RandomResizedCrop((64, 80), (0.05, 1.0), interpolation='bicubic', backend='pillow')
    for seed in range(10):
        assert_rounded_differently(seeded(ours, photo, seed), seeded(theirs, photo, seed))


def test_jitter_is_that_of_mmpretrain(photo):
    """Factors and their order: brightness and contrast, clipped, give something else the other way round."""
    amounts = dict(brightness=0.9, contrast=0.9, saturation=0.2, hue=0.1)
    ours, theirs = FastColorJitter(**amounts), ColorJitter(**amounts, backend='pillow')
    for seed in range(5):
        assert difference(seeded(ours, photo, seed), seeded(theirs, photo, seed)).mean() < 2


def test_jitter_of_one_property_leaves_the_others(photo):
    jittered = seeded(FastColorJitter(brightness=(0.5, 0.5)), photo, 0)
    assert (jittered == photo // 2).all()


def test_sigmas_are_uniform(photo, monkeypatch):
    sigmas = []
    monkeypatch.setattr(fast, 'blur', lambda image, sigma: sigmas.append(sigma))
    transform = FastGaussianBlur(magnitude_range=(0.1, 2.0), magnitude_std='inf', prob=0.5)
    for _ in range(1000):
        transform(dict(img=photo))
    assert 440 < len(sigmas) < 560
    assert 0.1 <= min(sigmas) < 0.15
    assert 1.95 < max(sigmas) <= 2.0
    assert 0.95 < np.mean(sigmas) < 1.15


@pytest.mark.parametrize('transform', [FastRandomFlip, FastRandomGrayscale])
def test_probability(photo, transform):
    image = photo[:4, :4]
    assert 240 < sum(transform(0.3)(dict(img=image))['img'] is not image for _ in range(1000)) < 360
    assert transform(0)(dict(img=image))['img'] is image


# --- views -----------------------------------------------------------------------------------
class Fill(BaseTransform):
    """Writes into the image it is given."""

    def transform(self, results):
        results['img'][:] = 0
        return results


def test_views_share_the_image(photo):
    image = photo.copy()
    results = dict(img=image, img_path='photo.jpg')
    views = FastMultiView([[FastRandomFlip(1.0)], [FastRandomFlip(0.0)]], [2, 1])(results)
    assert views['img_path'] == 'photo.jpg'
    assert [np.shares_memory(view, image) for view in views['img']] == [False, False, True]
    assert (image == photo).all()
    assert image.flags.writeable  # for whoever else has it


def test_a_view_cannot_write_into_the_others(photo):
    image = photo.copy()
    with pytest.raises(ValueError, match='read-only'):
        FastMultiView([[Fill()]], [2])(dict(img=image))
    assert (image == photo).all()


@pytest.fixture(scope='module')
def recipe():
    """The shipped pipeline, but for the reading of files."""
    cfg = Config.fromfile(CONFIGS / 'poa' / 'vitl_in1k.py')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return Compose([TRANSFORMS.build(transform) for transform in cfg.train_pipeline[1:]])


def test_recipe(photo, recipe):
    def load(seed):
        np.random.seed(seed)
        return recipe(dict(img=photo))['inputs']

    views = load(0)
    assert [tuple(view.shape) for view in views] == [(3, 224, 224)] * 2 + [(3, 96, 96)] * 8
    assert {str(view.dtype) for view in views} == {'torch.uint8'}
    assert all(view.is_contiguous() for view in views)
    assert all((view == again).all() for view, again in zip(views, load(0), strict=True))
    assert not any((view == other).all() for view, other in zip(views, load(1), strict=True))


@pytest.mark.parametrize('size', [(30, 400), (400, 30), (1, 1)])
def test_recipe_on_odd_images(photo, recipe, size):
    inputs = recipe(dict(img=cv2.resize(photo, size)))['inputs']
    assert [view.shape[-1] for view in inputs] == [224] * 2 + [96] * 8


# --- mistakes --------------------------------------------------------------------------------
def test_bad_arguments():
    with pytest.raises(ValueError, match="'nearest' is neither 'bilinear' nor 'bicubic'"):
        FastRandomResizedCrop(96, interpolation='nearest')
    with pytest.raises(ValueError, match=r'prob 1.5 is not in \[0, 1\]'):
        FastRandomFlip(1.5)


@pytest.mark.parametrize('shape', [(12, 9), (12, 9, 1)])
def test_grey_images_are_made_brighter_and_stretched_like_colour_images_of_three_equal_channels(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    colour = np.repeat(image.reshape(12, 9, 1), 3, axis=2)
    for adjust in (fast.adjust_brightness, fast.adjust_contrast):
        assert np.array_equal(adjust(image, 1.4).reshape(12, 9), adjust(colour, 1.4)[..., 0])
    state = np.random.get_state()
    found = FastColorJitter(brightness=0.4, contrast=0.4)(dict(img=image))['img']
    np.random.set_state(state)
    wanted = FastColorJitter(brightness=0.4, contrast=0.4)(dict(img=colour))['img']
    assert np.array_equal(found.reshape(12, 9), wanted[..., 0])
