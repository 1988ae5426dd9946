"""Patches of another size: one kernel and one position embedding serve them all.

FlexiViT (Beyer et al., 2023, Sec. 3.4): of a larger patch, the resized kernel gives the token that the native kernel
gives of the patch before it was enlarged; of a smaller one, the nearest to it in the mean over all patches.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=None)
def resize_matrix(size: int, to: int, inverse: bool = False) -> Tensor:
    """Linear interpolation of ``size`` numbers in a row to ``to``, antialiased, as a matrix ``(to, size)``.

    It is that of ``torch.nn.functional.interpolate`` with ``antialias=True``.

    Args:
        size: Numbers there are.
        to: Numbers wanted.
        inverse: The pseudo-inverse of its transpose instead, ``(to, size)``, by which a kernel is resized.
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


@lru_cache(maxsize=None)
def _placed(size: int, to: int, inverse: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """:func:`resize_matrix` where it is needed, copied there once."""
    with torch.inference_mode(False):
        return resize_matrix(size, to, inverse).to(device, dtype)


def resize_kernel(kernel: Tensor, to: int) -> Tensor:
    """Kernel of a patch projection for patches of ``to`` pixels.

    With ``P`` for the pseudo-inverse of the transpose of the interpolation, ``P kernel P^T``: the product of a patch
    with the kernel is that of the enlarged patch with the resized kernel. Computed in float32 at least, whatever the
    autocast.

    Args:
        kernel: ``(D, C, size, size)``.
        to: Height and width of a patch.

    Returns:
        ``(D, C, to, to)``.
    """
    dtype = torch.promote_types(kernel.dtype, torch.float32)
    matrix = _placed(kernel.shape[-1], to, True, dtype, kernel.device)
    with torch.autocast(kernel.device.type, enabled=False):
        return (matrix @ kernel.to(dtype) @ matrix.T).to(kernel.dtype)


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
    with torch.autocast(cells.device.type, enabled=False):
        values = cells.to(dtype).unflatten(1, grid).permute(0, 3, 1, 2)  # (1, D, rows, columns)
        return (rows @ values @ columns.T).flatten(2).transpose(1, 2).to(cells.dtype)


def overlaps(grid: tuple[int, int], other: tuple[int, int]) -> Tensor:
    """Share of each cell of a grid that lies in each cell of another grid of the same area.

    Args:
        grid: Rows and columns.
        other: Those of the other grid.

    Returns:
        ``(rows * columns, rows' * columns')`` in float32 on the CPU; rows sum to 1.
    """
    rows, columns = map(_shared, grid, other)
    return torch.kron(rows, columns).float()


def _shared(cells: int, others: int) -> Tensor:
    """Share of each of ``cells`` that lies in each of ``others``, all on one line, ``(cells, others)``."""
    # In units of which a cell has `others` and an other one `cells`: whole numbers.
    start, other = torch.arange(cells)[:, None] * others, torch.arange(others) * cells
    shared = torch.minimum(start + others, other + cells) - torch.maximum(start, other)
    return shared.clamp(min=0).double() / others
