"""Position embeddings of another grid, relative position biases of another window, patches of another size.

Of the first two, what is resized is said in the name that mmengine loads from, ``poa+grid=16x16://PATH`` or
``poa+window=12://PATH``: it reads the file once more when it initialises a model, and has to find the same weights.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from poa_mm.elastic import resize_patches as resize_patches

SCHEME = 'poa://'
PATTERN = r'poa(?:\+(?:grid=\d+x\d+|window=\d+))*://'  # of all names that begin like this
EMBEDDING = 'pos_embed'
BIASES, INDEX = 'relative_position_bias_table', 'relative_position_index'


class Resizing(NamedTuple):
    """What weights are brought to.

    Args:
        grid: Rows and columns of the patches of a ViT. Default: None, which leaves them.
        window: Rows, and columns, of the windows of a Swin. Default: the same.
    """

    grid: tuple[int, int] | None = None
    window: int | None = None

    def name(self, path: str | os.PathLike) -> str:
        """What mmengine is to load: ``poa+window=12://PATH``."""
        parts = [f'grid={self.grid[0]}x{self.grid[1]}'] if self.grid else []
        parts += [f'window={self.window}'] if self.window else []
        return f'{"+".join(["poa", *parts])}://{os.fspath(path)}'

    @classmethod
    def parse(cls, name: str) -> tuple[Resizing, str]:
        """The same read back: the resizing and the path."""
        head, path = name.split('://', 1)
        settings = dict(part.split('=') for part in head.split('+')[1:])
        rows, _, columns = settings.get('grid', '').partition('x')
        grid = (int(rows), int(columns)) if rows else None
        return cls(grid, int(settings['window']) if 'window' in settings else None), path

    def describe(self) -> str:
        """In words, for a log."""
        parts = [f'position embeddings to {self.grid[0]} x {self.grid[1]} patches'] if self.grid else []
        parts += [f'relative position biases to windows of {self.window}'] if self.window else []
        return ', '.join(parts)

    def apply(self, weights: Mapping[str, Any], grid: tuple[int, int] | None, mode: str = 'bicubic') -> dict[str, Any]:
        """Weights by name, resized where they have to be.

        Args:
            weights: Of a network, or of several under prefixes.
            grid: Of its position embeddings. Default: None, a square.
            mode: How embeddings are interpolated. Default: ``'bicubic'``.
        """
        weights = dict(weights)
        for name, value in list(weights.items()):
            last = name.rpartition('.')[2]
            if self.grid and last == EMBEDDING and isinstance(value, Tensor) and value.dim() == 3:
                weights[name] = resize_embedding(value, grid, self.grid, mode)
            if self.window and last == BIASES and isinstance(value, Tensor):
                weights[name] = resize_biases(value, self.window)
                index = name.removesuffix(BIASES) + INDEX
                if index in weights:
                    weights[index] = position_index(self.window)
        return weights


def resize_embedding(
    embedding: Tensor, grid: tuple[int, int] | None, to: tuple[int, int], mode: str = 'bicubic'
) -> Tensor:
    """Position embeddings of another grid, as mmpretrain's ``resize_pos_embed`` gives them.

    Args:
        embedding: ``(1, extra + rows * columns, D)``; the extra tokens stay as they are.
        grid: Rows and columns. Default: None, a square with one extra token or none.
        to: Those of the result.
        mode: Of ``torch.nn.functional.interpolate``. Default: ``'bicubic'``.

    Returns:
        ``(1, extra + to[0] * to[1], D)``.
    """
    length = embedding.shape[1]
    if grid is None:
        side = int((length - 1) ** 0.5)
        side = side if side**2 == length - 1 else int(length**0.5)
        grid = (side, side)
    extra = length - grid[0] * grid[1]
    if extra < 0:
        raise ValueError(f'position embeddings of shape {tuple(embedding.shape)} are not of a grid of {grid}')
    if tuple(grid) == tuple(to):
        return embedding
    cells = embedding[:, extra:].float().transpose(1, 2).unflatten(2, grid)  # (1, D, rows, columns)
    cells = F.interpolate(cells, size=to, mode=mode, align_corners=None if mode in ('nearest', 'area') else False)
    return torch.cat([embedding[:, :extra], cells.flatten(2).transpose(1, 2).to(embedding.dtype)], dim=1)


def resize_biases(table: Tensor, window: int) -> Tensor:
    """Relative position biases of windows of another size, as mmpretrain's own function gave them.

    That one calls a function that SciPy no longer has (``interp2d``, up to 1.13). As in the authors' code of BEiT, the
    old offsets are spread over the new range in a geometric progression, dense in the middle, and the values
    between are those of a bicubic spline.

    Args:
        table: ``((2 * old - 1) ** 2, heads)``.
        window: The new size.

    Returns:
        ``((2 * window - 1) ** 2, heads)``.
    """
    from scipy.interpolate import RectBivariateSpline

    old, new = int(table.shape[0] ** 0.5), 2 * window - 1  # values on a side
    if old**2 != table.shape[0]:
        raise ValueError(f'relative position biases of shape {tuple(table.shape)} are not of square windows')
    if old == new:
        return table
    if old == 1:  # windows of one token have one bias, whatever the offset
        return table.expand(new**2, -1).clone()
    steps, reach = old // 2, new // 2
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio**steps) / (1 - ratio) > reach:
            high = ratio
        else:
            low = ratio
    offsets = [sum(ratio**power for power in range(step)) for step in range(1, steps + 1)]
    offsets = [-offset for offset in reversed(offsets)] + [0.0, *offsets]
    wanted = [float(offset) for offset in range(-reach, reach + 1)]
    degree = min(3, old - 1)  # windows of two have too few values for a cubic spline
    heads = []
    for values in table.detach().float().cpu().T.unflatten(1, (old, old)):
        spline = RectBivariateSpline(offsets, offsets, values.numpy(), kx=degree, ky=degree)
        heads.append(torch.from_numpy(spline(wanted, wanted)).flatten())
    return torch.stack(heads, dim=1).to(table.dtype)


def position_index(window: int) -> Tensor:
    """Which bias a pair of tokens of a window has, ``(window ** 2, window ** 2)``, as mmpretrain's ``WindowMSA``."""
    side = 2 * window - 1
    index = (torch.arange(0, side * window, side)[:, None] + torch.arange(window)[None, :]).reshape(1, -1)
    return (index + index.T).flip(1).contiguous()
