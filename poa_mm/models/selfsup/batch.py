"""The batch contract between the multi-crop pipeline and POA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .grids import GridChange, change_grid


class MultiCropBatch(NamedTuple):
    """Views of ``B`` images, crop-major: all first crops, then all second crops, and so on.

    Args:
        global_views: ``(2 * B, C, H, W)``.
        local_views: ``(L * B, C, h, w)``; None without local crops.
        masks: Masked patches of the global views, boolean ``(2 * B, N)``, all False when there are none.
        masked: The same as view and patch of each of the ``M`` masked patches, ``(2, M)``.
        mask_shares: Share of each in a mean over the global views, in which all patches of a view count together as
            one, ``(M,)``.
        grid_change: Between the grid of ``masks`` and that of ``masked``, where they differ. Default: None.
    """

    global_views: Tensor
    local_views: Tensor | None
    masks: Tensor
    masked: Tensor
    mask_shares: Tensor
    grid_change: GridChange | None = None

    @property
    def num_rows(self) -> dict[str, int]:
        """Class tokens by size of crops: ``2 * B`` of the global, ``L * B`` of the local ones."""
        return {'global': len(self.global_views), 'local': 0 if self.local_views is None else len(self.local_views)}

    @property
    def sizes(self) -> tuple[str, ...]:
        """Of the crops: ``'global'`` and, where there are any, ``'local'``."""
        return ('global',) if self.local_views is None else ('global', 'local')

    def masked_of(self, patches: Tensor) -> Tensor:
        """The masked ones ``(M, D)`` of the patches ``(2 * B, N, D)`` of the global views."""
        if self.grid_change is not None:
            return self.grid_change.masked_of(patches, self.masked)
        return patches[self.masked[0], self.masked[1]]

    def on_native_grid(self, patches: Tensor) -> Tensor:
        """Patches of a student ``(2 * B, N', D)`` on the grid of ``masked``, ``(2 * B, N, D)``: means by area."""
        return patches if self.grid_change is None else self.grid_change.averaged(patches)

    def on_grid(self, grid: tuple[int, int], native: tuple[int, int]) -> MultiCropBatch:
        """The same for a student whose patches lie on ``grid``, not on the ``native`` one; see :mod:`.grids`."""
        if grid == native:
            return self
        change = change_grid(self.masks, native, grid)
        shares = change.shares(self.mask_shares, self.masks, self.masked)
        return self._replace(masks=change.masks, mask_shares=shares, grid_change=change)

    @classmethod
    def collate(
        cls, inputs: Sequence[Tensor], data_samples: Sequence | None, mask_grid: tuple[int, int], masked: bool
    ) -> MultiCropBatch:
        """Check and stack what the pipeline delivers.

        How many patches are masked is known where the masks are. So they best come from the host
        (:class:`MultiCropDataPreprocessor`): it would have to wait for a device to tell.

        Args:
            inputs: Views, each ``(B, C, H, W)``: two global crops of one size, then any number of local
                crops of one size.
            data_samples: One sample for each image, whose ``mask`` is boolean ``(2, rows, columns)``, one
                mask for each global crop. Not looked at unless ``masked``.
            mask_grid: The rows and columns that the backbone expects.
            masked: Whether masks take effect.

        Raises:
            TypeError: If ``inputs`` is not a sequence of tensors.
            ValueError: If a shape breaks the contract or a mask is missing.
        """
        check_views(inputs)
        global_views = torch.cat(list(inputs[:2]))
        device = global_views.device
        if masked:
            masks = _stack_masks(data_samples, len(inputs[0]), mask_grid)
        else:
            masks = torch.zeros(len(global_views), mask_grid[0] * mask_grid[1], dtype=torch.bool)
        number = masks.sum(dim=1, keepdim=True).clamp(min=1)  # (2B, 1)
        shares = (1 / (len(masks) * number)).expand_as(masks)[masks]
        return cls(
            global_views,
            torch.cat(list(inputs[2:])) if len(inputs) > 2 else None,
            *(_sent(value, device) for value in (masks, masks.nonzero().T, shares)),
        )


def check_views(inputs: Sequence[Tensor]) -> None:
    """Check the views of a batch, see :meth:`MultiCropBatch.collate`.

    Raises:
        TypeError: If ``inputs`` is not a sequence of tensors.
        ValueError: If there are fewer than two views or their shapes break the contract.
    """
    if not isinstance(inputs, (list, tuple)) or not all(isinstance(view, Tensor) for view in inputs):
        raise TypeError(f'inputs must be a list of views, tensors (B, C, H, W); got {type(inputs).__name__}')
    shapes = [tuple(view.shape) for view in inputs]
    if len(inputs) < 2 or len(set(shapes[:2])) != 1 or len(shapes[0]) != 4:
        raise ValueError(f'the first two views must be global crops of one shape (B, C, H, W); got {shapes}')
    if len(set(shapes[2:])) > 1 or any(shape[:2] != shapes[0][:2] for shape in shapes[2:]):
        raise ValueError(f'the views from the third on must be local crops of one shape (B, C, h, w); got {shapes}')


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``, without a wait for it."""
    if device.type == 'cuda' and tensor.device.type == 'cpu':
        tensor = tensor.pin_memory()  # a copy from other memory waits for all that the device has to do before
    return tensor.to(device, non_blocking=True)


def check_masks(data_samples: Sequence | None, batch: int, mask_grid: tuple[int, int]) -> None:
    """Check the masks of a batch, see :meth:`MultiCropBatch.collate`; also before they take effect.

    Raises:
        ValueError: If a mask is missing, or its shape is not that of the backbone's patches.
    """
    if data_samples is None or len(data_samples) != batch:
        found = 'none' if data_samples is None else len(data_samples)
        raise ValueError(f'{batch} data samples with a mask are needed, one for each image; got {found}')
    for sample in data_samples:
        mask = sample.get('mask')
        if mask is None:
            raise ValueError('a data sample has no mask: add BlockMask to the pipeline or set patch_weight=0')
        if tuple(mask.shape) != (2, *mask_grid) or mask.dtype != torch.bool:
            raise ValueError(
                f'mask of shape {tuple(mask.shape)} and {mask.dtype} must be boolean {(2, *mask_grid)}, '
                'two global crops by the grid of the backbone: set grid of BlockMask'
            )


def _stack_masks(data_samples: Sequence | None, batch: int, mask_grid: tuple[int, int]) -> Tensor:
    """Masks of all samples, crop-major ``(2 * B, N)``."""
    check_masks(data_samples, batch, mask_grid)
    masks = [sample.mask.flatten(1) for sample in data_samples]
    return torch.stack(masks, dim=1).flatten(0, 1)  # (2, B, N) -> (2B, N)
