"""Elastic layers of transformers, under the attribute names of mmpretrain's.

A slice of their state dict is a state dict of the stock network.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
from mmcv.cnn.bricks.transformer import PatchEmbed
from mmengine.model import BaseModule
from mmpretrain.models.utils import resize_pos_embed
from torch import Tensor, nn
from torch.nn import functional as F

from poa_mm.elastic import ElasticLayer, ElasticLayerNorm, ElasticLayerScale, ElasticLinear, leading, resize_patches

from ..sending import sent
from .elastic_backbone import BatchPart


def add_branch(
    x: Tensor, branch: Callable[[Tensor], Tensor], drop_rate: float, part: BatchPart | None = None
) -> Tensor:
    """``x + branch(x)``, computed for a random part of the batch only (stochastic depth).

    ``floor(B * (1 - drop_rate))`` samples, at least one, go through ``branch``; their residual is
    scaled by ``B / kept``. The others cost nothing.

    Args:
        x: ``(B, ...)``.
        branch: Residual branch.
        drop_rate: Share of the batch left out, in ``[0, 1)``.
        part: Where ``x`` is a part of a larger batch: which one. Samples are then chosen from all of that batch, on the
            host; where the generator starts alike for each part, all parts choose the same. Default: None, it is
            the whole batch.
    """
    if drop_rate == 0:
        return x + branch(x)
    batch = len(x) if part is None else part.total
    number = max(int(batch * (1 - drop_rate)), 1)
    if part is None:
        kept = torch.randperm(batch, device=x.device)[:number]
    else:
        kept = sent(part.present(torch.randperm(batch)[:number]), x.device)
        if len(kept) == 0:
            return x
    return x.index_add(0, kept, branch(x[kept]).to(x.dtype), alpha=batch / number)


def _layer_scale(width: int, init_value: float) -> nn.Module:
    return ElasticLayerScale(width, init_value) if init_value > 0 else nn.Identity()


def dropout(rate: float) -> nn.Module:
    """Dropout, or nothing at a rate of 0."""
    return nn.Dropout(rate) if rate > 0 else nn.Identity()


def resize_positions(
    pos_embed: Tensor, source: tuple[int, int], target: tuple[int, int], mode: str, extra_tokens: int
) -> Tensor:
    """Position embeddings ``(1, L, D)`` for another grid, by mmpretrain's ``resize_pos_embed``.

    Args:
        pos_embed: Those of ``extra_tokens``, which stay, then those of the grid.
        source: Rows and columns that they are for.
        target: Rows and columns that are needed.
        mode: Of the interpolation.
        extra_tokens: Tokens before those of the grid.
    """
    if tuple(target) != tuple(source) and pos_embed.is_cuda and torch.are_deterministic_algorithms_enabled():
        return resize_by_product(pos_embed, source, target, mode, extra_tokens)
    return resize_pos_embed(pos_embed, source, target, mode, extra_tokens)


def resize_by_product(pos_embed: Tensor, *args: Any) -> Tensor:
    """As :func:`resize_positions`, by a product with a matrix: GPUs interpolate back with sums in random order."""
    with torch.autocast(pos_embed.device.type, enabled=False):
        weights = resize_pos_embed(torch.eye(pos_embed.shape[1], device=pos_embed.device)[None], *args)  # (1, L', L)
        return weights.to(pos_embed.dtype) @ pos_embed


class ElasticPatchEmbed(PatchEmbed, ElasticLayer):
    """Patch projection; the one layer that is told the width, since its input is never cut, and the patch size."""

    def forward(self, x: Tensor, width: int, patch: int | None = None) -> tuple[Tensor, tuple[int, int]]:
        """Images ``(B, C, H, W)`` to tokens ``(B, N, width)`` and their grid ``(rows, columns)``.

        ``patch`` pixels are the height and width of a patch, and divide those of the images. Default: the native size,
        to whole patches of which images are padded.
        """
        conv = self.projection
        if self.adaptive_padding and patch is None:
            x = self.adaptive_padding(x)
        if width < self.embed_dims or patch is not None:
            x = F.conv2d(x, *self.sliced(width, patch), conv.stride if patch is None else patch)
        else:
            x = conv(x)
        return x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3])

    def sliced(self, width: int, patch: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Kernel ``(width, C, rows, columns)`` and bias ``(width,)`` in use."""
        kernel, bias = self.projection.weight[:width], self.projection.bias
        if patch is not None:
            kernel = resize_patches(kernel, (patch, patch))
        return kernel, None if bias is None else leading(bias, width)

    def sliced_state(self, ratio: Fraction, patch: int | None = None) -> dict[str, Tensor]:
        kernel, bias = self.sliced(int(self.embed_dims * ratio), patch)
        state = {'projection.weight': kernel, 'projection.bias': bias}
        return {name: value.detach().clone() for name, value in state.items() if value is not None}


class ElasticAttention(BaseModule):
    """Self-attention over however many heads of ``head_dim`` channels arrive."""

    def __init__(
        self,
        width: int,
        head_dim: int,
        qkv_bias: bool,
        layer_scale_init_value: float,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
    ):
        super().__init__()
        self.head_dim = head_dim
        self.attn_drop_rate = attn_drop_rate
        self.proj_drop = dropout(drop_rate)
        self.qkv = ElasticLinear(width, 3 * width, bias=qkv_bias, stacked=3)
        self.proj = ElasticLinear(width, width)
        self.gamma1 = _layer_scale(width, layer_scale_init_value)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, N, width)`` to the same."""
        qkv = self.qkv(x).unflatten(-1, (3, -1, self.head_dim))  # (B, N, 3, heads, head_dim)
        query, key, value = (part.transpose(1, 2) for part in qkv.unbind(2))  # each (B, heads, N, head_dim)
        drop_rate = self.attn_drop_rate if self.training else 0.0
        x = F.scaled_dot_product_attention(query, key, value, dropout_p=drop_rate)
        return self.gamma1(self.proj_drop(self.proj(x.transpose(1, 2).flatten(2))))


class ElasticFFN(BaseModule):
    """Two linear layers with GELU between."""

    def __init__(self, width: int, hidden: int, layer_scale_init_value: float, drop_rate: float = 0.0):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Sequential(ElasticLinear(width, hidden), nn.GELU(), dropout(drop_rate)),
            ElasticLinear(hidden, width),
            dropout(drop_rate),
        )
        self.gamma2 = _layer_scale(width, layer_scale_init_value)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, N, width)`` to the same."""
        return self.gamma2(self.layers(x))


class ElasticEncoderLayer(BaseModule):
    """One pre-norm transformer block."""

    def __init__(
        self,
        width: int,
        head_dim: int,
        hidden: int,
        qkv_bias: bool,
        norm_eps: float,
        layer_scale_init_value: float,
        drop_path_rate: float,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
    ):
        super().__init__()
        self.drop_path_rate = drop_path_rate
        self.ln1 = ElasticLayerNorm(width, norm_eps)
        self.attn = ElasticAttention(width, head_dim, qkv_bias, layer_scale_init_value, drop_rate, attn_drop_rate)
        self.ln2 = ElasticLayerNorm(width, norm_eps)
        self.ffn = ElasticFFN(width, hidden, layer_scale_init_value, drop_rate)

    def forward(self, x: Tensor, part: BatchPart | None = None) -> Tensor:
        """``(B, N, width)`` to the same; ``part`` as of :func:`add_branch`."""
        drop_rate = self.drop_path_rate if self.training else 0.0
        x = add_branch(x, lambda x: self.attn(self.ln1(x)), drop_rate, part)
        return add_branch(x, lambda x: self.ffn(self.ln2(x)), drop_rate, part)
