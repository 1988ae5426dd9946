"""Stock networks as modules that torch.export can trace with any batch and, where asked, any image size.

They use the layers of the stock network itself, in plain tensor operations whose shapes torch can reason about.
Arithmetic is the stock network's, so that the outputs agree to the last bit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .network import RESNET, SWIN, VIT, ExportNetwork


class TraceableViT(nn.Module):
    """A stock ``VisionTransformer``.

    Args:
        network: The network.
        dynamic_size: Resize the position embedding to the images, which must be whole patches. Default: False.
    """

    def __init__(self, network: nn.Module, dynamic_size: bool = False):
        super().__init__()
        self.network = network
        self.dynamic_size = dynamic_size

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images ``(B, C, H, W)`` to the two tensors of :class:`~.network.Outputs`."""
        network = self.network
        x = network.patch_embed.projection(images)
        rows, columns = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)  # (B, N, D)
        x = torch.cat([network.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = x + self._pos_embed((rows, columns))
        for layer in network.layers:
            x = layer(x)
        x = network.ln1(x)
        return x[:, 0], x[:, 1:].transpose(1, 2).unflatten(2, (rows, columns))

    def _pos_embed(self, grid: tuple[int, int]) -> Tensor:
        pos_embed = self.network.pos_embed  # (1, 1 + N, D)
        if not self.dynamic_size:
            return pos_embed
        patches = pos_embed[:, 1:].transpose(1, 2).unflatten(2, tuple(self.network.patch_resolution))
        patches = F.interpolate(patches, size=grid, mode=self.network.interpolate_mode, align_corners=False)
        return torch.cat([pos_embed[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)


class TraceableResNet(nn.Module):
    """A stock ``ResNet``.

    Args:
        network: The network.
        dynamic_size: Changes nothing: convolutions take any size.
    """

    def __init__(self, network: nn.Module, dynamic_size: bool = False):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images ``(B, C, H, W)`` to the two tensors of :class:`~.network.Outputs`."""
        x = self.network(images)[-1]
        return x.mean(dim=(2, 3)), x


class TraceableSwin(nn.Module):
    """A stock ``SwinTransformer``.

    Rolling, padding, cutting into windows and the way back are one look-up each, by indices that are computed from
    the size of the map: shapes that are cut and padded again and again are more than torch can reason about.

    Args:
        network: The network.
        dynamic_size: Changes nothing: the indices follow the size.
    """

    def __init__(self, network: nn.Module, dynamic_size: bool = False):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images ``(B, C, H, W)`` to the two tensors of :class:`~.network.Outputs`."""
        network = self.network
        x = network.patch_embed.projection(images)
        grid = tuple(x.shape[2:])
        x = network.patch_embed.norm(x.flatten(2).transpose(1, 2))  # (B, rows * columns, D)
        for stage in network.stages:
            indices = {
                shift: window_indices(grid, stage.blocks[0].attn.window_size, shift)
                for shift in {block.attn.shift_size for block in stage.blocks}
            }
            for block in stage.blocks:
                x = x + self._attention(block.attn, block.norm1(x), *indices[block.attn.shift_size])
                x = x + block.ffn.layers(block.norm2(x))
            if stage.downsample is not None:
                x = self._merge(stage.downsample, x, grid)
                grid = (grid[0] // 2, grid[1] // 2)
        last = len(network.stages) - 1
        x = getattr(network, f'norm{last}')(x).transpose(1, 2).unflatten(2, grid)
        return x.mean(dim=(2, 3)), x

    @staticmethod
    def _attention(attn: nn.Module, x: Tensor, source: Tensor, target: Tensor, region: Tensor | None) -> Tensor:
        """What ``ShiftWindowMSA`` makes of tokens ``(B, N, D)``; indices of :func:`window_indices`."""
        msa, area = attn.w_msa, attn.window_size**2
        batch = x.shape[0]
        # A row of zeros after the tokens is what padded places look up.
        x = F.pad(x, (0, 0, 0, 1))[:, source].flatten(0, 1).unflatten(0, (-1, area))  # (B * windows, area, D)
        query, key, value = msa.qkv(x).unflatten(-1, (3, msa.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        bias = msa.relative_position_bias_table[msa.relative_position_index].permute(2, 0, 1)
        scores = query * msa.scale @ key.transpose(-2, -1) + bias  # (B * windows, heads, area, area)
        if region is not None:
            region = region.expand(batch, -1).flatten().reshape(-1, 1, area)
            scores = scores + (region[:, :, None] != region[:, :, :, None]).to(scores.dtype) * -100.0
        x = msa.proj((scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2))
        return x.flatten(0, 1).unflatten(0, (batch, source.shape[0]))[:, target]

    @staticmethod
    def _merge(merging: nn.Module, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """What ``PatchMerging`` makes of tokens: the four of a cell lie channel by channel."""
        batch, _, width = x.shape
        x = x.reshape(batch, grid[0] // 2, 2, grid[1] // 2, 2, width).permute(0, 1, 3, 5, 2, 4)
        return merging.reduction(merging.norm(x.flatten(3).flatten(1, 2)))


def window_indices(grid: tuple[int, int], window: int, shift: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Where the tokens of a map lie among its windows.

    Args:
        grid: Rows and columns of the map; padded below and to the right to whole windows.
        window: Rows and columns of a window.
        shift: Rows and columns that the map is rolled up and to the left.

    Returns:
        For each place of each window, ``(windows * window**2,)``, the token that lies there (``rows * columns`` for a
        padded one); for each token, ``(rows * columns,)``, its place; and for each place the number of its region,
        which alone its token may attend to, or None without a shift.
    """
    height, width = grid
    down, across = (height + window - 1) // window, (width + window - 1) // window
    place = torch.arange(down * across * window**2)
    number, within = place // window**2, _rest(place, window**2)
    row = number // across * window + within // window  # in the rolled map
    column = _rest(number, across) * window + _rest(within, window)
    region = None
    if shift:
        region = 3 * _edges(row, down * window, window, shift) + _edges(column, across * window, window, shift)
    row, column = _rest(row + shift, down * window), _rest(column + shift, across * window)
    source = torch.where((row < height) & (column < width), row * width + column, height * width)

    token = torch.arange(height * width)
    row = _rest(token // width - shift + down * window, down * window)
    column = _rest(_rest(token, width) - shift + across * window, across * window)
    target = (row // window * across + column // window) * window**2
    target = target + _rest(row, window) * window + _rest(column, window)
    return source, target, region


def _rest(value: Tensor, divisor: int) -> Tensor:
    """``value % divisor``, which ONNX does not know for a divisor that depends on the image size."""
    return value - value // divisor * divisor


def _edges(position: Tensor, size: int, window: int, shift: int) -> Tensor:
    """0, 1 or 2: before the last window, in it, and in what was rolled there from the other side."""
    return (position >= size - window).long() + (position >= size - shift).long()


TRACEABLE = {VIT: TraceableViT, SWIN: TraceableSwin, RESNET: TraceableResNet}


def traceable(network: ExportNetwork, dynamic_size: bool = False) -> nn.Module:
    """The network as a module that gives the two tensors of :class:`~.network.Outputs`, in evaluation mode."""
    return TRACEABLE[network.kind](network.build(), dynamic_size).eval()
