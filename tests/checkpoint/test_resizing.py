import numpy as np
import pytest
import scipy.interpolate
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmpretrain.models import SwinTransformer
from mmpretrain.models.utils import resize_pos_embed
from mmpretrain.models.utils.embed import resize_relative_position_bias_table
from torch.testing import assert_close

from poa_mm.checkpoint import Resizing
from poa_mm.checkpoint.resizing import position_index, resize_biases, resize_embedding


def waves(window, heads=2):
    """Biases of any size that are the same in every environment."""
    values = (2 * window - 1) ** 2 * heads
    return torch.from_numpy(np.sin(np.arange(values, dtype=np.float32))).view(-1, heads)


# What mmpretrain's function made of waves() with SciPy 1.11.4: the third row, the sum, that of the squares, and that
# weighted by position.
LIBRARY = {
    (3, 4): ([0.9092974066, 0.1411200017], -14.6919346446, 108.9002210799, -1057.5200915952),
    (7, 12): ([1.3469722951, 0.9207585328], -11.8351347194, 602.7912637350, -2425.0591701625),
    (12, 7): ([-0.6175050422, 0.2988343837], 0.0481493952, 164.8982643812, -35.7795536759),
    (4, 3): ([0.9166802262, 0.8273690807], -1.2744309432, 24.6183030212, -19.5597365171),
}


@pytest.mark.parametrize(('old', 'new'), LIBRARY)
def test_biases_are_those_that_the_library_gave(old, new):
    found = resize_biases(waves(old).double(), new)
    row, total, squares, weighted = LIBRARY[old, new]
    assert found.shape == ((2 * new - 1) ** 2, 2)
    assert_close(found[2], torch.tensor(row, dtype=torch.double), rtol=0, atol=1e-6)
    positions = torch.arange(found.numel()).view_as(found)
    sums = [found.sum(), (found**2).sum(), (found * positions).sum()]
    assert [float(value) for value in sums] == pytest.approx([total, squares, weighted], rel=1e-5, abs=1e-4)


@pytest.mark.parametrize(('old', 'new'), [(3, 4), (7, 12), (12, 7)])
def test_biases_are_those_that_the_library_gives_where_it_still_can(old, new):
    try:
        scipy.interpolate.interp2d([0, 1], [0, 1], np.zeros((2, 2)))
    except (AttributeError, NotImplementedError):
        pytest.skip('SciPy no longer has interp2d')
    expected = resize_relative_position_bias_table(2 * old - 1, 2 * new - 1, waves(old), 2)
    assert_close(resize_biases(waves(old), new), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize('old', [1, 2, 3, 7])
@pytest.mark.parametrize('new', [1, 2, 5, 12])
def test_biases_keep_what_must_stay(old, new):
    table = torch.stack([torch.full(((2 * old - 1) ** 2,), 0.5), torch.zeros((2 * old - 1) ** 2)], dim=1)
    assert_close(resize_biases(table, new), table[:1].expand((2 * new - 1) ** 2, 2))  # nothing but 0.5, or 0
    table = waves(old)
    found = resize_biases(table, new)
    assert_close(found[len(found) // 2], table[len(table) // 2])  # a token and itself
    if old == new:
        assert found is table


@pytest.mark.parametrize('window', [2, 7, 12])
def test_position_index_is_that_of_the_library(window):
    network = SwinTransformer(
        arch=dict(embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1]), window_size=window, img_size=32
    )
    assert torch.equal(position_index(window), network.stages[0].blocks[0].attn.w_msa.relative_position_index)


grids = st.tuples(st.integers(1, 6), st.integers(1, 6))


@given(grids, grids, st.integers(0, 2))
def test_embeddings_are_those_of_the_library(grid, to, extra):
    embedding = torch.randn(1, extra + grid[0] * grid[1], 3)
    found = resize_embedding(embedding, grid, to)
    assert_close(found, resize_pos_embed(embedding, grid, to, 'bicubic', extra))
    assert torch.equal(found[:, :extra], embedding[:, :extra])


def test_a_grid_that_is_not_named_is_a_square():
    embedding = torch.randn(1, 17, 3)
    assert_close(resize_embedding(embedding, None, (2, 8)), resize_embedding(embedding, (4, 4), (2, 8)))
    assert_close(resize_embedding(embedding[:, 1:], None, (2, 8)), resize_embedding(embedding[:, 1:], (4, 4), (2, 8)))
    with pytest.raises(ValueError, match=r'\(1, 17, 3\) are not of a grid of \(4, 5\)'):
        resize_embedding(embedding, (4, 5), (2, 8))


@given(st.none() | grids, st.none() | st.integers(1, 30), st.text(min_size=1))
def test_names_say_what_is_resized(grid, window, path):
    resizing = Resizing(grid, window)
    assert Resizing.parse(resizing.name(path)) == (resizing, path)


def test_only_what_is_asked_for_is_resized():
    state = {
        'backbone.pos_embed': torch.randn(1, 17, 3),
        'a.relative_position_bias_table': torch.randn(9, 2),
        'a.relative_position_index': torch.zeros(4, 4),
        'other.weight': torch.zeros(1, 17, 3),
    }
    assert all(value is state[name] for name, value in Resizing().apply(state, None).items())
    found = Resizing((2, 8), 3).apply(state, (4, 4))
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        'backbone.pos_embed': (1, 17, 3),
        'a.relative_position_bias_table': (25, 2),
        'a.relative_position_index': (9, 9),
        'other.weight': (1, 17, 3),
    }
    assert not torch.equal(found['backbone.pos_embed'], state['backbone.pos_embed'])
