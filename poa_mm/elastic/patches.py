"""Patches of other sizes: the weights of one projection and one position embedding serve them all.

FlexiViT (https://arxiv.org/abs/2212.08013, Eq. 2-4): the resized weights give on a patch that was resized what the
weights gave on the patch before, exactly if it became larger, in the least-squares sense if it became smaller.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
from torch import Tensor


def full_precision(device: torch.device) -> AbstractContextManager:
    """Without autocast, which the device ``meta`` has none of."""
    return nullcontext() if device.type == 'meta' else torch.autocast(device.type, enabled=False)


@cache
def resize_matrix(size: int, to: int, inverse: bool = False) -> Tensor:
    """Linear interpolation of ``size`` numbers in a row to ``to``, antialiased, as a matrix ``(to, size)``.

    It is that of ``torch.nn.functional.interpolate`` with ``antialias=True``.

    Args:
        size: Numbers there are.
        to: Numbers wanted.
        inverse: The pseudo-inverse of its transpose instead, ``(to, size)``, by which weights are resized.
            Default: False.

    Returns:
        float64 on the CPU, the same object each time: not to be changed.
    """
    # Whoever asks first, in whatever mode, gets what training can use.
    with torch.inference_mode(False), torch.no_grad(), torch.device('cpu'):
        scale = size / to
        centres = (torch.arange(to, dtype=torch.float64) + 0.5) * scale
        distance = (centres[:, None] - (torch.arange(size, dtype=torch.float64) + 0.5)).abs()  # (to, size)
        matrix = (1 - distance / max(scale, 1)).clamp(min=0)
        matrix = matrix / matrix.sum(dim=1, keepdim=True)
        return torch.linalg.pinv(matrix.T) if inverse else matrix


@cache
def _placed(size: int, to: int, inverse: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """:func:`resize_matrix` where it is needed, copied there once."""
    with torch.inference_mode(False):
        return resize_matrix(size, to, inverse).to(device, dtype)


def resize_patches(weight: Tensor, size: tuple[int, int]) -> Tensor:
    """Weights of a patch projection for patches of another size.

    With ``R`` and ``C`` for the pseudo-inverses of the transposed interpolations of rows and columns, ``R weight C^T``:
    the product of a patch with the weights is that of the enlarged patch with the resized weights. Computed in float32
    at least, whatever the autocast.

    Args:
        weight: ``(D, C, rows, columns)``.
        size: Rows and columns of the new patches.

    Returns:
        ``(D, C, *size)``.
    """
    if tuple(weight.shape[-2:]) == tuple(size):
        return weight
    dtype = torch.promote_types(weight.dtype, torch.float32)
    rows, columns = (_placed(*sizes, True, dtype, weight.device) for sizes in zip(weight.shape[-2:], size))
    with full_precision(weight.device):
        return (rows @ weight.to(dtype) @ columns.T).to(weight.dtype)


def resize_grid(cells: Tensor, grid: tuple[int, int], to: tuple[int, int]) -> Tensor:
    """Values of a grid on another grid of the same area, by linear interpolation, antialiased.

    Computed in float32 at least, whatever the autocast.

    Args:
        cells: ``(1, rows * columns, D)``.
        grid: Rows and columns.
        to: Those of the result.

    Returns:
        ``(1, to[0] * to[1], D)``.
    """
    dtype = torch.promote_types(cells.dtype, torch.float32)
    rows, columns = (_placed(old, new, False, dtype, cells.device) for old, new in zip(grid, to))
    with full_precision(cells.device):
        values = cells.to(dtype).unflatten(1, grid).permute(0, 3, 1, 2)  # (1, D, rows, columns)
        return (rows @ values @ columns.T).flatten(2).transpose(1, 2).to(cells.dtype)


@cache
def overlaps(grid: tuple[int, int], other: tuple[int, int], device: torch.device | str = 'cpu') -> Tensor:
    """Share of each cell of a grid that lies in each cell of another grid of the same area.

    Args:
        grid: Rows and columns.
        other: Those of the other grid.
        device: Where it is needed. Default: the CPU.

    Returns:
        ``(rows * columns, rows' * columns')`` in float32, the same object each time; rows sum to 1.
    """
    with torch.inference_mode(False), torch.no_grad():
        rows, columns = map(_shared, grid, other)
        return torch.kron(rows, columns).float().to(device)


def _shared(cells: int, others: int) -> Tensor:
    """Share of each of ``cells`` that lies in each of ``others``, all on one line, ``(cells, others)``."""
    # In units of which a cell has `others` and an other one `cells`: whole numbers.
    with torch.device('cpu'):
        start, other = torch.arange(cells)[:, None] * others, torch.arange(others) * cells
    shared = torch.minimum(start + others, other + cells) - torch.maximum(start, other)
    return shared.clamp(min=0).double() / others
