"""Elastic layers of Swin transformers, under the attribute names of mmpretrain's.

A slice of their state dict is a state dict of the stock network.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch
from mmcv.cnn.bricks.transformer import PatchMerging
from mmengine.model import BaseModule, ModuleList
from mmpretrain.models.utils import ShiftWindowMSA
from mmpretrain.models.utils.attention import WindowMSA
from torch import Tensor, nn

from poa_mm.elastic import ElasticLayer, ElasticLayerNorm, ElasticLinear, leading

from .elastic_backbone import BatchPart
from .elastic_transformer import ElasticFFN, ElasticPatchEmbed, add_branch

NORM_EPS = 1e-5  # that of mmpretrain's Swin
MLP_RATIO = 4


class ElasticSwinStem(ElasticPatchEmbed):
    """Patch projection and LayerNorm.

    Args:
        stem_norm: Channels that the norm runs over: ``'sliced'`` or ``'full'``, see :class:`ElasticSwinTransformer`.
        **options: Of mmcv's ``PatchEmbed``.
    """

    def __init__(self, stem_norm: str, **options: Any):
        super().__init__(**options)
        self.stem_norm = stem_norm
        self.norm = ElasticLayerNorm(self.embed_dims, NORM_EPS)

    def forward(self, x: Tensor, width: int) -> tuple[Tensor, tuple[int, int]]:
        """Images ``(B, C, H, W)`` to tokens ``(B, N, width)`` and their grid ``(rows, columns)``."""
        x, grid = super().forward(x, self.embed_dims if self.stem_norm == 'full' else width)
        return leading(self.norm(x), width), grid


class ElasticWindowMSA(WindowMSA, ElasticLayer):
    """Attention within windows, over however many heads of ``embed_dims / num_heads`` channels arrive.

    Each head has its own relative position biases: the leading heads keep theirs.

    Args:
        embed_dims: Channels at full width.
        window_size: Rows and columns of a window.
        num_heads: Heads at full width.
        qkv_bias: Bias on query, key and value. Default: True.
    """

    def __init__(self, embed_dims: int, window_size: tuple[int, int], num_heads: int, qkv_bias: bool = True):
        BaseModule.__init__(self)  # WindowMSA's would build linear layers that are not elastic
        self.head_dim = embed_dims // num_heads
        rows, columns = window_size
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * rows - 1) * (2 * columns - 1), num_heads))
        index = self.double_step_seq(2 * columns - 1, rows, 1, columns)
        self.register_buffer('relative_position_index', (index + index.T).flip(1).contiguous())  # (N, N)
        self.qkv = ElasticLinear(embed_dims, 3 * embed_dims, bias=qkv_bias, stacked=3)
        self.proj = ElasticLinear(embed_dims, embed_dims)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Windows of tokens, ``(B * windows, N, width)``, to the same.

        Args:
            x: The windows.
            mask: Added to the attention of each window, ``(windows, N, N)``. Default: none.
        """
        qkv = self.qkv(x).unflatten(-1, (3, -1, self.head_dim))  # (B * windows, N, 3, heads, head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B * windows, heads, N, head_dim)
        bias = leading(self.relative_position_bias_table, query.shape[1])[self.relative_position_index]
        scores = query * self.head_dim**-0.5 @ key.transpose(-2, -1) + bias.permute(2, 0, 1)
        if mask is not None:
            scores = (scores.unflatten(0, (-1, len(mask))) + mask.unsqueeze(1)).flatten(0, 1)
        x = scores.softmax(dim=-1) @ value
        return self.proj(x.transpose(1, 2).flatten(2))

    def sliced_state(self, ratio: Fraction) -> dict[str, Tensor]:
        table = self.relative_position_bias_table
        return {
            'relative_position_bias_table': leading(table, int(table.shape[1] * ratio)).clone(),
            'relative_position_index': self.relative_position_index.clone(),
        }


class ElasticSwinBlock(BaseModule):
    """One pre-norm block of attention within (shifted) windows."""

    def __init__(
        self,
        width: int,
        head_dim: int,
        shift: bool,
        window_size: int,
        drop_path_rate: float,
        pad_small_map: bool = True,
    ):
        super().__init__()
        self.drop_path_rate = drop_path_rate
        self.norm1 = ElasticLayerNorm(width, NORM_EPS)
        self.attn = ShiftWindowMSA(
            width,
            width // head_dim,
            window_size,
            shift_size=window_size // 2 if shift else 0,
            pad_small_map=pad_small_map,
            window_msa=ElasticWindowMSA,
        )
        self.norm2 = ElasticLayerNorm(width, NORM_EPS)
        self.ffn = ElasticFFN(width, MLP_RATIO * width, layer_scale_init_value=0)

    def forward(self, x: Tensor, grid: tuple[int, int], part: BatchPart | None = None) -> Tensor:
        """Tokens ``(B, rows * columns, width)`` to the same; ``part`` as of :func:`add_branch`."""
        drop_rate = self.drop_path_rate if self.training else 0.0
        x = add_branch(x, lambda x: self.attn(self.norm1(x), grid), drop_rate, part)
        return add_branch(x, lambda x: self.ffn(self.norm2(x)), drop_rate, part)


class ElasticPatchMerging(PatchMerging):
    """Halves the grid and doubles the channels, over however many arrive.

    The four tokens of a cell lie channel by channel, ``(c0 of all four, c1 of all four, ..)``. A leading slice is
    therefore the leading slice of each of the four. (The authors' code puts token after token, and cuts each.)
    """

    def __init__(self, width: int):
        super().__init__(width, 2 * width, norm_cfg=None)
        self.norm = ElasticLayerNorm(4 * width, NORM_EPS)
        self.reduction = ElasticLinear(4 * width, 2 * width, bias=False)


class ElasticSwinStage(BaseModule):
    """Blocks on one grid, every other one shifted unless none is, and the patch merging after them."""

    def __init__(self, width: int, depth: int, downsample: bool, shifted: bool = True, **block_options: Any):
        super().__init__()
        self.blocks = ModuleList(
            ElasticSwinBlock(width, shift=shifted and index % 2 == 1, **block_options) for index in range(depth)
        )
        self.downsample = ElasticPatchMerging(width) if downsample else None
