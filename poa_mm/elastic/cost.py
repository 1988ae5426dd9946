"""Parameters and floating-point operations of a subnet, by arithmetic."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple


class Cost(NamedTuple):
    """Size and price of one network.

    Args:
        params: Number of parameters.
        flops: Floating-point operations of one forward pass of one image; a multiply-add counts as 2.
            Matrix products and convolutions only, as ``torch.utils.flop_counter`` counts.
    """

    params: int
    flops: int


def transformer_cost(
    width: int,
    depth: int,
    *,
    tokens: int,
    patch_inputs: int,
    extra_tokens: int = 1,
    mlp_ratio: float | Fraction = 4,
    qkv_bias: bool = True,
    layer_scale: bool = True,
    final_norm: bool = True,
) -> Cost:
    """Cost of a plain vision transformer without a classification head.

    Args:
        width: Channels.
        depth: Blocks.
        tokens: Patch tokens of an image.
        patch_inputs: Numbers in one patch: channels * height * width.
        extra_tokens: Tokens beside the patches. Default: 1 (the class token).
        mlp_ratio: Hidden channels of the MLP over ``width``; a fraction where a float would round. Default: 4.
        qkv_bias: Bias on query, key and value. Default: True.
        layer_scale: LayerScale on both branches. Default: True.
        final_norm: LayerNorm after the last block. Default: True.
    """
    length = tokens + extra_tokens
    hidden = int(width * mlp_ratio)
    matrices = 4 * width * width + 2 * width * hidden
    vectors = (
        (3 * width if qkv_bias else 0) + width  # attention
        + hidden + width  # MLP
        + 2 * 2 * width  # two LayerNorms
        + (2 * width if layer_scale else 0)
    )  # fmt: skip
    params = (
        depth * (matrices + vectors)
        + (patch_inputs + 1) * width
        + (length + extra_tokens) * width  # position embedding and class token
        + (2 * width if final_norm else 0)
    )
    attention = 2 * length * length * width  # queries by keys, then weights by values
    flops = 2 * (depth * (length * matrices + attention) + tokens * patch_inputs * width)
    return Cost(params, flops)
