import numpy as np
import pytest

from poa_mm.datasets.compositing import TEXTURES, background, paint, photographed, silhouette, tinted


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_silhouettes_have_no_holes_and_no_noise():
    grey = np.zeros((9, 9), np.uint8)
    grey[2:7, 2:7] = 200
    grey[4, 4] = 0
    grey[0, 0] = 20
    expected = np.zeros((9, 9), bool)
    expected[2:7, 2:7] = True
    np.testing.assert_array_equal(silhouette(grey), expected)


def test_tints_keep_the_shading(rng):
    grey = np.array([[0, 255]], np.uint8)
    colour = tinted(rng, grey)[0]
    np.testing.assert_allclose(colour[0], 0.3 * colour[1], rtol=1e-6)
    assert 150 < colour[1].max() <= 255
    assert not np.allclose(tinted(rng, grey)[0], colour)


def test_paint_stays_within_a_pixel_of_the_mask():
    image = np.zeros((9, 9, 3), np.float32)
    mask = np.zeros((9, 9), bool)
    mask[3:6, 3:6] = True
    paint(image, np.full((9, 9, 3), 100, np.float32), mask)
    assert (image[4, 4] == 100).all()
    assert 0 < image[2, 4, 0] < 50 < image[3, 4, 0] < 100
    image[2:7, 2:7] = 0
    assert not image.any()


def test_backgrounds_meet_at_a_straight_line(rng):
    for _ in range(20):
        image, textures = background(rng, (24, 40))
        assert image.shape == (24, 40, 3)
        assert image.dtype == np.float32
        assert 0 <= image.min() <= image.max() <= 255
        kinds = np.unique(textures)
        assert set(kinds) <= set(range(len(TEXTURES)))
        assert 1 <= len(kinds) <= 2  # the line may pass beyond a corner
        changes = np.abs(np.diff((textures == kinds[0]).astype(int), axis=1)).sum(axis=1)
        assert changes.max() <= 1


def test_noise_is_small_and_clipped(rng):
    image = np.tile(np.array([0, 128, 255], np.float32), (50, 50, 1))
    noisy = photographed(rng, image)
    assert noisy.dtype == np.uint8
    assert 2.5 < noisy[..., 1].std() < 3.5
    assert noisy[..., 0].max() < 30
    assert noisy[..., 2].min() > 225
