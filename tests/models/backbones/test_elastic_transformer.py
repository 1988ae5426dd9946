from fractions import Fraction

import pytest
import torch
from mmcv.cnn.bricks.transformer import PatchEmbed
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from torch.nn import functional as F
from torch.testing import assert_close

from poa_mm.elastic import sliced_state_dict
from poa_mm.models.backbones.elastic_transformer import (
    ElasticAttention,
    ElasticEncoderLayer,
    ElasticPatchEmbed,
    add_branch,
)

# --- drop path ---


def test_branch_is_computed_for_the_kept_samples_only():
    computed = []

    def branch(x):
        computed.append(len(x))
        return x

    for rate in (0.0, 0.25, 0.3, 0.9, 0.99):
        add_branch(torch.randn(8, 2), branch, rate)
    assert computed == [8, 6, 5, 1, 1]


def test_dropped_samples_pass_and_kept_ones_are_scaled():
    x = torch.randn(8, 3)
    out = add_branch(x, lambda x: 2 * x, 0.25)
    dropped = (out == x).all(dim=1)
    assert dropped.sum() == 2
    assert_close(out[~dropped], x[~dropped] * (1 + 2 * 8 / 6))


def test_drop_path_keeps_the_expectation():
    """Over many draws every sample gets its residual once on average, and all take their turn to be dropped."""
    x, residual = torch.zeros(5, 1), torch.arange(1.0, 6).unsqueeze(1)
    draws = torch.stack([add_branch(x + residual, lambda x: x, 0.4) - residual for _ in range(3000)])
    assert_close(draws.mean(dim=0), residual, rtol=0.06, atol=0)
    assert_close((draws == 0).float().mean(dim=0), torch.full((5, 1), 0.4), rtol=0, atol=0.05)


def test_gradient_of_dropped_samples_is_the_identity():
    x = torch.randn(8, 3, requires_grad=True)
    out = add_branch(x, lambda x: 2 * x, 0.5)
    out.sum().backward()
    dropped = (out == x).all(dim=1)
    assert_close(x.grad, torch.where(dropped.unsqueeze(1), 1.0, 5.0).expand(8, 3))


def test_block_drops_in_training_only(randomise):
    """A block that drops nearly all of its branches leaves most samples as they are, but for one in each branch."""
    block = randomise(ElasticEncoderLayer(16, 8, 32, True, 1e-6, 0.5, drop_path_rate=0.9))
    x = torch.randn(6, 3, 16)
    block.train()
    changed = (block(x) != x).flatten(1).any(dim=1)
    assert 1 <= changed.sum() <= 2
    block.eval()
    assert (block(x) != x).flatten(1).any(dim=1).all()


# --- layers ---


@pytest.mark.parametrize('width', [16, 32, 48])
@pytest.mark.parametrize('qkv_bias, layer_scale', [(True, 0.5), (False, 0.0)])
@torch.no_grad()
def test_block_equals_the_stock_block(randomise, width, qkv_bias, layer_scale):
    block = randomise(ElasticEncoderLayer(48, 16, 96, qkv_bias, 1e-3, layer_scale, drop_path_rate=0.0))
    plain = TransformerEncoderLayer(
        width,
        num_heads=width // 16,
        feedforward_channels=2 * width,
        layer_scale_init_value=layer_scale,
        qkv_bias=qkv_bias,
        norm_cfg=dict(type='LN', eps=1e-3),
    )
    plain.load_state_dict(sliced_state_dict(block, Fraction(width, 48)))
    x = torch.randn(2, 5, width)
    assert_close(block(x), plain(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('width, heads', [(16, 1), (32, 2), (48, 3)])
def test_heads_keep_their_channels(monkeypatch, width, heads):
    """Narrower means fewer heads, not thinner ones."""
    seen = []
    attend = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, 'scaled_dot_product_attention', lambda *qkv, **options: seen.append(qkv) or attend(*qkv, **options)
    )
    attention = ElasticAttention(48, 16, qkv_bias=True, layer_scale_init_value=0)
    assert attention(torch.randn(2, 5, width)).shape == (2, 5, width)
    assert [part.shape for part in seen[0]] == [(2, heads, 5, 16)] * 3


@pytest.mark.parametrize('width', [16, 48])
@pytest.mark.parametrize('size', [(32, 64), (30, 50)], ids=str)
def test_patch_projection_is_cut_in_its_outputs_and_not_scaled(width, size):
    options = dict(in_channels=3, kernel_size=16, stride=16, input_size=32)
    embed, plain = ElasticPatchEmbed(embed_dims=48, **options), PatchEmbed(embed_dims=width, **options)
    plain.load_state_dict(sliced_state_dict(embed, Fraction(width, 48)))
    assert torch.equal(plain.projection.weight, embed.projection.weight[:width])
    image = torch.randn(2, 3, *size)
    tokens, grid = embed(image, width)
    expected, expected_grid = plain(image)
    assert grid == tuple(expected_grid) == (2, 4)
    assert_close(tokens, expected)
