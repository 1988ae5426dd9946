"""Parameters and floating-point operations of a subnet, by arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
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
    norms: int = 1,
    stem_bias: bool = True,
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
        norms: LayerNorms beside the blocks'. Default: 1, after the last block.
        stem_bias: Bias of the patch projection. Default: True.
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
        + (patch_inputs + stem_bias) * width
        + (length + extra_tokens) * width  # position embedding and class token
        + norms * 2 * width
    )
    attention = 2 * length * length * width  # queries by keys, then weights by values
    flops = 2 * (depth * (length * matrices + attention) + tokens * patch_inputs * width)
    return Cost(params, flops)


def resnet_cost(
    mid_channels: int,
    stage_blocks: Sequence[int],
    *,
    image_size: tuple[int, int],
    out_channels: int = 256,
    stem_channels: int = 64,
    in_channels: int = 3,
    strides: Sequence[int] = (1, 2, 2, 2),
    deep_stem: bool = False,
) -> Cost:
    """Cost of a ResNet of bottlenecks, with affine norms, without a classification head.

    Args:
        mid_channels: Mid channels of the first stage's bottlenecks, doubled from stage to stage.
        stage_blocks: Blocks of each stage.
        image_size: Height and width in pixels.
        out_channels: Channels that the first stage gives, doubled from stage to stage. Default: 256.
        stem_channels: Channels of the stem. Default: 64.
        in_channels: Channels of the images. Default: 3.
        strides: Stride of the first block of each stage. Default: (1, 2, 2, 2).
        deep_stem: Three convolutions of 3 x 3 instead of one of 7 x 7. Default: False.
    """
    height, width = (-(-size // 2) for size in image_size)
    half = stem_channels // 2
    stem = (
        (in_channels * 9 * half, 9 * half**2, 9 * half * stem_channels)
        if deep_stem
        else (in_channels * 49 * stem_channels,)
    )
    params = sum(stem) + 2 * (2 * half * deep_stem + stem_channels)
    flops = 2 * sum(stem) * height * width
    height, width = -(-height // 2), -(-width // 2)  # max pooling
    inputs = stem_channels
    for blocks, stride in zip(stage_blocks, strides):
        cells = height * width
        height, width = -(-height // stride), -(-width // stride)
        for block in range(blocks):
            weights = inputs * mid_channels, 9 * mid_channels**2, mid_channels * out_channels
            cells_out = height * width
            params += sum(weights) + 2 * (2 * mid_channels + out_channels)
            # The stride is that of the second convolution.
            flops += 2 * (weights[0] * cells + (weights[1] + weights[2]) * cells_out)
            if block == 0 and (stride != 1 or inputs != out_channels):  # the shortcut's projection
                params += inputs * out_channels + 2 * out_channels
                flops += 2 * inputs * out_channels * cells_out
            inputs, cells = out_channels, cells_out
        mid_channels, out_channels = 2 * mid_channels, 2 * out_channels
    return Cost(params, flops)


def swin_cost(
    width: int,
    stage_blocks: Sequence[int],
    *,
    image_size: tuple[int, int],
    head_dim: int,
    window_size: int = 7,
    patch_size: int = 4,
    in_channels: int = 3,
    mlp_ratio: int = 4,
    normed_stages: Sequence[int] = (3,),
    positions: int = 0,
) -> Cost:
    """Cost of a Swin transformer without a classification head.

    Attention is computed on whole windows, so that the padding of maps that do not divide into windows is paid for.

    Args:
        width: Channels of the first stage, doubled from stage to stage.
        stage_blocks: Blocks of each stage.
        image_size: Height and width in pixels.
        head_dim: Channels of an attention head.
        window_size: Rows and columns of a window. Default: 7.
        patch_size: Height and width of a patch in pixels. Default: 4.
        in_channels: Channels of the images. Default: 3.
        mlp_ratio: Hidden channels of the MLP over the stage's. Default: 4.
        normed_stages: Stages with a LayerNorm on their output. Default: the fourth only, (3,).
        positions: Tokens of a learned position embedding. Default: 0, none.
    """
    rows, columns = (-(-size // patch_size) for size in image_size)
    patch_inputs = in_channels * patch_size**2
    params = (patch_inputs + 3 + positions) * width  # weight, bias, LayerNorm and position embedding
    flops = 2 * patch_inputs * width * rows * columns
    for stage, blocks in enumerate(stage_blocks):
        if stage > 0:  # patch merging
            rows, columns = -(-rows // 2), -(-columns // 2)
            params += 8 * width**2 + 8 * width
            flops += 2 * 8 * width**2 * rows * columns
            width *= 2
        hidden = mlp_ratio * width
        attention, mlp = 4 * width**2, 2 * width * hidden
        biases = width // head_dim * (2 * window_size - 1) ** 2
        params += blocks * (attention + 4 * width + biases + mlp + hidden + width + 2 * 2 * width)
        padded = -(-rows // window_size) * -(-columns // window_size) * window_size**2
        products = 2 * window_size**2 * width  # queries by keys, then weights by values
        flops += 2 * blocks * (padded * (attention + products) + rows * columns * mlp)
        params += 2 * width if stage in normed_stages else 0
    return Cost(params, flops)
