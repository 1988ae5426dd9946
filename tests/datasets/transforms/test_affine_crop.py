import cv2
import numpy as np
import pytest

from poa_mm.datasets import RandomAffineCrop


def photo(rows=40, columns=60, channels=3):
    return np.random.default_rng(0).integers(0, 256, (rows, columns, channels), np.uint8)


def smooth(rows=40, columns=60):
    y, x = np.indices((rows, columns))
    return (2 * x + 3 * y).astype(np.uint8)


@pytest.mark.parametrize('size', [(28, 28), (28, 41)])
def test_the_whole_image_in_its_own_size_is_the_image(size):
    image = photo(*size)
    same = RandomAffineCrop(size, (1, 1), (size[1] / size[0],) * 2, flip=0)(dict(img=image))
    assert np.array_equal(same['img'], image)
    assert same['img_shape'] == image.shape
    mirrored = RandomAffineCrop(size, (1, 1), (size[1] / size[0],) * 2, flip=1)(dict(img=image))
    assert np.array_equal(mirrored['img'], image[:, ::-1])


def test_grey_images_stay_grey():
    assert RandomAffineCrop(14)(dict(img=photo()[..., 0]))['img'].shape == (14, 14)
    assert RandomAffineCrop((8, 12))(dict(img=photo()))['img'].shape == (8, 12, 3)


def test_a_crop_lies_within_the_image_and_has_its_share_of_it():
    crop = RandomAffineCrop((10, 20), (0.1, 0.5), flip=0.5)
    shares, mirrored = [], 0
    for _ in range(300):
        matrix = crop._draw(40, 60)
        corners = matrix @ np.array([[-0.5, -0.5, 1], [19.5, -0.5, 1], [-0.5, 9.5, 1], [19.5, 9.5, 1]]).T
        assert corners.min() >= -0.5 - 1e-9
        assert corners[0].max() <= 59.5 + 1e-9
        assert corners[1].max() <= 39.5 + 1e-9
        width, height = np.ptp(corners, axis=1)
        assert 3 / 4 - 1e-9 <= width / height <= 4 / 3 + 1e-9
        shares.append(width * height / 2400)
        mirrored += matrix[0, 0] < 0
    assert 0.1 <= min(shares) < 0.15
    assert 0.45 < max(shares) <= 0.5 + 1e-9
    assert 100 < mirrored < 200


def test_pixels_come_from_where_the_matrix_says():
    image = smooth()
    crop = RandomAffineCrop((8, 6), (0.3, 0.6), flip=0.5)
    state = np.random.get_state()
    matrix = crop._draw(40, 60)
    np.random.set_state(state)
    found = crop(dict(img=image))['img']
    y, x = np.indices((8, 6))
    x, y = np.einsum('ij,jhw->ihw', matrix, np.stack([x, y, np.ones_like(x)]))
    assert np.abs(found - (2 * x + 3 * y)).max() <= 1  # rounding, and OpenCV's steps of 1/32 pixel


def test_turns_and_shears_keep_the_centre():
    turned = RandomAffineCrop(21, (1, 1), (1, 1), flip=0, degrees=30, shear=0.3)
    matrices = [turned._draw(21, 21) for _ in range(100)]
    for matrix in matrices:
        assert np.allclose(matrix @ [10, 10, 1], [10, 10])
        assert np.isclose(np.linalg.det(matrix[:, :2]), 1)
    angles = [np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0])) for matrix in matrices]
    assert -30 <= min(angles) < -20
    assert 20 < max(angles) <= 30


def test_the_image_it_is_given_is_left_alone():
    image = photo()
    before = image.copy()
    image.flags.writeable = False
    RandomAffineCrop(28)(dict(img=image))
    assert np.array_equal(image, before)


def test_a_crop_looks_like_opencvs_resize():
    image = cv2.GaussianBlur(photo(), (0, 0), 3)
    whole = RandomAffineCrop((60, 90), (1, 1), (1.5, 1.5), flip=0)(dict(img=image))['img']
    wanted = cv2.resize(image, (90, 60), interpolation=cv2.INTER_LINEAR)
    assert np.abs(whole[2:-2, 2:-2].astype(int) - wanted[2:-2, 2:-2]).max() <= 2


@pytest.mark.parametrize(
    'options, complaint',
    [
        (dict(crop_ratio_range=(0, 1)), 'crop_ratio_range'),
        (dict(crop_ratio_range=(0.5, 0.4)), 'rising'),
        (dict(crop_ratio_range=(0.5, 1.4)), 'beyond 1'),
        (dict(aspect_ratio_range=(2, 1)), 'aspect_ratio_range'),
        (dict(flip=1.5), 'flip 1.5'),
        (dict(degrees=-1), 'degrees -1'),
        (dict(shear=-0.1), 'shear -0.1'),
    ],
)
def test_impossible_arguments_are_refused(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        RandomAffineCrop(28, **options)
