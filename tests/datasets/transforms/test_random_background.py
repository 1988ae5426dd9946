import numpy as np
import pytest

from poa_mm.datasets import Digits, RandomBackground


@pytest.fixture
def item():
    image = np.zeros((32, 32), np.uint8)
    image[8:24, 12:20] = 255
    image[14:18, 15:17] = 0  # a hole
    return image


@pytest.fixture(autouse=True)
def numpy_seed():
    np.random.seed(0)


def compose(image, prob=1.0):
    return RandomBackground(prob)(dict(img=image.copy()))['img']


def test_every_view_has_its_own_background_and_tint(item):
    first, second = compose(item).astype(int), compose(item).astype(int)
    assert first.shape == (32, 32, 3)
    assert np.abs(first - second)[:6].mean() > 10
    assert np.abs(first - second)[10:13, 14:18].mean() > 10


def test_the_item_has_one_colour_and_is_all_that_stays(item):
    image = compose(item).astype(int)
    inside = np.concatenate([image[10:13, 14:18].reshape(-1, 3), image[19:22, 14:18].reshape(-1, 3)])
    assert np.ptp(inside, axis=0).max() < 30  # but for the camera's noise of 3 levels
    black, tint = image[15:17, 15:17].reshape(-1, 3).mean(axis=0), inside.mean(axis=0)
    np.testing.assert_allclose(black, 0.3 * tint, atol=12)  # a hole is part of the item, in its tint
    assert image[:4].std() > 5


def test_without_background_the_image_stays(item):
    for image in (item, item[..., None]):
        np.testing.assert_array_equal(compose(image, prob=0), np.repeat(item[..., None], 3, axis=2))


def test_probability(item):
    black_corner = [not compose(item, prob=0.3)[0, 0].any() for _ in range(300)]
    assert 0.6 < np.mean(black_corner) < 0.8


def test_the_seed_decides(item):
    first = compose(item)
    np.random.seed(0)
    np.testing.assert_array_equal(compose(item), first)


def test_black_images_are_backgrounds_only():
    assert compose(np.zeros((16, 16), np.uint8)).std() > 5


def test_bad_input(item):
    with pytest.raises(ValueError, match=r'prob 1\.5'):
        RandomBackground(1.5)
    with pytest.raises(ValueError, match=r'\(32, 32, 3\)'):
        compose(np.zeros((32, 32, 3), np.uint8))


def test_of_a_real_dataset():
    digit = Digits('train')[0]['img'][..., :1]
    assert compose(digit).shape == (8, 8, 3)
