"""Masks and masked patches of a student whose patches have another size than the teacher's.

The teacher's targets belong to masked patches of the native grid. A student on another grid meets them like this:

- Its patch is masked where all native patches that it touches are. So it sees whatever the intact student sees, and
  each of its masked patches lies wholly within what the teacher has targets for.
- Its feature of a native patch is the mean of its masked patches there, weighted by area. The native patch counts by
  the share of its area that they cover, and all masked patches of a view together count as one, as ever.

So rows and targets stay those of the native grid, pair by pair. Where patches of one size are made of whole patches of
the other, nothing is approximate: four small patches are averaged to the native one that they make up; a large one
learns the mean of the targets of the four that it is made of, as the loss is linear in the targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from poa_mm.elastic import SubnetSpace, overlaps
from poa_mm.elastic.patches import full_precision

from ..backbones.vit_space import check_whole_patches


class GridChange(NamedTuple):
    """From a student's grid to the native one.

    Args:
        masks: Masked patches of the student, boolean ``(2B, N')``.
        overlaps: Share of each native patch that lies in each of the student's, ``(N, N')``.
        covered: Share of each native patch that lies in masked ones of the student's, ``(2B, N)``.
    """

    masks: Tensor
    overlaps: Tensor
    covered: Tensor

    def masked_of(self, patches: Tensor, masked: Tensor) -> Tensor:
        """Features of native patches.

        Args:
            patches: Of the student, ``(2B, N', D)``.
            masked: View and native patch of each of the ``M`` rows that are wanted, ``(2, M)``.

        Returns:
            ``(M, D)``; rows that nothing masked covers are ones, and have no share in a loss.
        """
        views, cells = masked
        covered = self.covered[views, cells].unsqueeze(1)  # (M, 1)
        with full_precision(patches.device):
            hidden = self.overlaps @ (patches.float() * self.masks.unsqueeze(2))  # (2B, N, D)
            rows = hidden[views, cells] / covered.clamp(min=torch.finfo(covered.dtype).tiny)
        return torch.where(covered > 0, rows, torch.ones_like(rows)).to(patches.dtype)

    def averaged(self, patches: Tensor) -> Tensor:
        """Features of all native patches ``(2B, N, D)``, each the mean of the student's ``(2B, N', D)`` by area."""
        with full_precision(patches.device):
            return (self.overlaps @ patches.float()).to(patches.dtype)

    def shares(self, shares: Tensor, native_masks: Tensor, masked: Tensor) -> Tensor:
        """What the rows count for, ``(M,)``, of what they count for on the native grid, ``shares``.

        Args:
            shares: ``(M,)``, equal within a view.
            native_masks: Boolean ``(2B, N)``.
            masked: View and native patch of each row, ``(2, M)``.
        """
        views, cells = masked
        total = self.covered.sum(dim=1)  # (2B,)
        factor = native_masks.sum(dim=1) / total.clamp(min=torch.finfo(total.dtype).tiny)
        factor = torch.where(total > 0, factor, torch.zeros_like(factor))
        return shares * factor[views] * self.covered[views, cells]


def change_grid(native_masks: Tensor, native: tuple[int, int], grid: tuple[int, int]) -> GridChange:
    """The masks of a student on another grid, and how its patches meet those of the native one.

    Args:
        native_masks: Masked patches of the native grid, boolean ``(2B, N)``.
        native: Rows and columns of that grid.
        grid: Those of the student's, of the same images.
    """
    seen = (~native_masks).float().unflatten(1, native).unsqueeze(1)  # (2B, 1, rows, columns)
    masks = F.adaptive_max_pool2d(seen, grid).flatten(1) == 0  # a cell of the pooling is what a patch touches
    shares = overlaps(native, grid, native_masks.device)
    with full_precision(shares.device):
        covered = masks.float() @ shares.T
    return GridChange(masks, shares, covered)


def check_crops(inputs: Sequence[Tensor], space: SubnetSpace) -> None:
    """Check that crops divide into patches of every size, not only of the one that is dealt first.

    Args:
        inputs: Views, each ``(B, C, H, W)``.
        space: Of the subnets; nothing is checked where there is no choice of patch sizes.

    Raises:
        ValueError: If they do not; names both.
    """
    for size in dict.fromkeys(tuple(view.shape[-2:]) for view in inputs):
        for patch in space.patch_sizes:
            check_whole_patches(size, patch, 'crops')
