import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from poa_mm.elastic import overlaps, resize_grid, resize_patches
from poa_mm.elastic.patches import resize_matrix


@pytest.mark.parametrize(('old', 'new'), [((4, 4), (8, 8)), ((4, 4), (5, 7)), ((7, 3), (14, 4)), ((16, 16), (16, 16))])
def test_larger_patches_give_the_same_tokens(old, new):
    weight, patches = torch.randn(6, 3, *old).double(), torch.randn(10, 3, *old).double()
    larger = F.interpolate(patches, size=new, mode='bilinear', antialias=True)
    resized = resize_patches(weight, new)
    assert resized.shape == (6, 3, *new)
    assert_close(resized.flatten(1) @ larger.flatten(1).T, weight.flatten(1) @ patches.flatten(1).T, rtol=0, atol=1e-9)


@pytest.mark.parametrize(('old', 'new'), [((8, 8), (4, 4)), ((14, 14), (16, 16)), ((16, 16), (14, 14))])
def test_patches_are_resized_as_timm_does(old, new):
    patch_embed = pytest.importorskip('timm.layers.patch_embed')
    weight = torch.randn(5, 3, *old)
    expected = patch_embed.resample_patch_embed(weight, list(new), interpolation='bilinear', antialias=True)
    assert_close(
        resize_patches(weight, new), expected, rtol=0, atol=1e-4
    )  # timm multiplies in float32, values up to 10


def test_smaller_patches_are_the_best_there_are():
    # Any other weights are further from what the old ones gave, on average over patches of independent pixels.
    weight, change = torch.randn(1, 1, 8, 8).double(), 0.01 * torch.randn(1, 1, 4, 4).double()
    pixels = torch.eye(64).double().view(64, 1, 8, 8)
    smaller = F.interpolate(pixels, size=(4, 4), mode='bilinear', antialias=True).flatten(1)

    def error(resized):
        return ((smaller @ resized.flatten() - weight.flatten()) ** 2).sum()

    resized = resize_patches(weight, (4, 4))
    assert error(resized) < error(resized + change)
    assert error(resized) < error(resized - change)


@pytest.mark.parametrize(('size', 'to'), [(4, 8), (8, 4), (7, 14), (14, 7), (16, 14), (1, 5), (5, 1), (16, 48), (3, 2)])
def test_the_matrix_is_that_of_antialiased_interpolation(size, to):
    rows = torch.eye(size, dtype=torch.float64)[None, None]
    expected = F.interpolate(rows, size=(to, size), mode='bilinear', antialias=True)[0, 0]
    matrix = resize_matrix(size, to)
    assert matrix.dtype == torch.float64
    assert_close(matrix, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('size', range(1, 33))
def test_every_enlargement_is_exact(size):
    """No size loses rank, so that nothing of a patch is lost by enlarging it."""
    for to in range(size, 49):
        inverse, matrix = resize_matrix(size, to, inverse=True), resize_matrix(size, to)
        assert_close(inverse.T @ matrix, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-9)


def test_rectangles_are_resized_as_by_one_matrix():
    weight = torch.randn(3, 2, 6, 4).double()
    pixels = torch.eye(24).double().view(24, 1, 6, 4)
    resized = F.interpolate(pixels, size=(3, 9), mode='bilinear', antialias=True).flatten(1)  # (old, new)
    expected = weight.flatten(2) @ torch.linalg.pinv(resized).T
    assert_close(resize_patches(weight, (3, 9)).flatten(2), expected, rtol=0, atol=1e-9)


def test_grids_are_resized_as_by_interpolation():
    cells = torch.randn(1, 6 * 4, 5)
    expected = F.interpolate(cells.view(1, 6, 4, 5).permute(0, 3, 1, 2), size=(3, 9), mode='bilinear', antialias=True)
    assert_close(resize_grid(cells, (6, 4), (3, 9)), expected.flatten(2).transpose(1, 2))
    assert_close(resize_grid(cells, (6, 4), (6, 4)), cells)


def test_whoever_asks_first_training_can_use_the_matrices():
    with torch.inference_mode():
        resize_patches(torch.randn(2, 1, 11, 11), (13, 13))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        weight = torch.randn(2, 1, 11, 11, requires_grad=True)
        found = resize_patches(weight, (13, 13))
    assert found.dtype == torch.float32
    found.square().sum().backward()
    assert weight.grad.abs().sum() > 0
    assert torch.equal(found, resize_patches(weight, (13, 13)))
    half = resize_patches(weight.half(), (13, 13))
    assert half.dtype == torch.float16
    assert_close(half.float(), found, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(('cells', 'others'), [((2, 2), (4, 4)), ((4, 4), (2, 2)), ((4, 4), (7, 7)), ((3, 5), (2, 7))])
def test_overlaps_by_counting_pixels(cells, others):
    height, width = (a * b for a, b in zip(cells, others))
    number = torch.arange(cells[0] * cells[1]).view(cells).repeat_interleave(others[0], 0)
    number = number.repeat_interleave(others[1], 1)
    other = torch.arange(others[0] * others[1]).view(others).repeat_interleave(cells[0], 0)
    other = other.repeat_interleave(cells[1], 1)
    assert number.shape == other.shape == (height, width)
    counts = torch.zeros(cells[0] * cells[1], others[0] * others[1])
    counts.index_put_((number.flatten(), other.flatten()), torch.ones(height * width), accumulate=True)
    assert_close(overlaps(cells, others), counts / counts.sum(dim=1, keepdim=True))
