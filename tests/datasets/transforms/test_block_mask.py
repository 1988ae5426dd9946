import numpy as np
import pytest

from poa_mm.datasets import BlockMask


@pytest.fixture(autouse=True)
def numpy_seed():
    np.random.seed(0)


def draw(number, **options):
    transform = BlockMask(**options)
    return np.concatenate([transform({})['mask'] for _ in range(number)])  # (2 * number, rows, columns)


def test_shape_and_type():
    mask = BlockMask(grid=(3, 5), num_masks=4)({})['mask']
    assert mask.shape == (4, 3, 5)
    assert mask.dtype == bool


def test_share_of_masked_crops_and_patches():
    masks = draw(1000, grid=14)
    shares = masks.mean(axis=(1, 2))
    masked = shares[shares > 0]
    assert 0.46 < len(masked) / len(masks) < 0.54
    assert masked.max() <= 0.5
    assert 0.27 < masked.mean() < 0.31  # uniform in 0.1 .. 0.5 would be 0.3; blocks fall a little short
    assert np.quantile(masked, 0.1) < 0.17
    assert np.quantile(masked, 0.9) > 0.42


@pytest.mark.parametrize('ratio', [(0.1, 0.1), (0.3, 0.3), (0.5, 0.5)])
def test_the_aim_is_met_but_never_exceeded(ratio):
    counts = draw(200, grid=14, prob=1.0, ratio=ratio).sum(axis=(1, 2))
    aim = int(196 * ratio[0])
    assert counts.max() <= aim
    assert counts.mean() > 0.93 * aim


def test_all_or_none():
    assert not draw(20, grid=14, prob=0.0).any()
    assert draw(20, grid=14, prob=1.0).any(axis=(1, 2)).all()


def test_patches_come_in_blocks():
    """A masked patch has more masked neighbours than one of as many thrown at random."""
    masks = draw(200, grid=14, prob=1.0, ratio=(0.3, 0.3))
    right = (masks[:, :, 1:] & masks[:, :, :-1]).sum() / masks[:, :, :-1].sum()
    assert right > 0.6


@pytest.mark.parametrize('grid', [1, 2, (1, 4)])
def test_tiny_grids_end(grid):
    draw(50, grid=grid, prob=1.0, ratio=(0.5, 1.0), min_patches=1)


@pytest.mark.parametrize(
    'options',
    [dict(grid=0), dict(prob=1.5), dict(ratio=(0.5, 0.1)), dict(ratio=(0.1, 1.1)), dict(min_patches=0)],
)
def test_bad_values_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        BlockMask(**dict(grid=14) | options)


def test_masks_follow_the_seed():
    first = draw(3, grid=14)
    np.random.seed(0)
    np.testing.assert_array_equal(first, draw(3, grid=14))
