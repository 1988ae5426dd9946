"""The batch contract between the multi-crop pipeline and POA."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..backbones.elastic_backbone import BatchPart
from ..sending import sent
from .grids import GridChange, change_grid


class MultiCropBatch(NamedTuple):
    """Views of ``B`` images, crop-major: all first crops, then all second crops, and so on.

    A whole batch, or a piece of one: see :class:`MicroBatches`.

    Args:
        global_views: ``(2 * B, C, H, W)``.
        local_views: ``(L * B, C, h, w)``; None without local crops.
        masks: Masked patches of the global views, boolean ``(2 * B, N)``, all False when there are none.
        masked: The same as view and patch of each of the ``M`` masked patches, ``(2, M)``.
        mask_shares: Share of each in a mean over the global views of the whole batch, in which all patches of a view
            count together as one, ``(M,)``.
        first: Place of the first image in the whole batch.
        whole: Number of images in the whole batch.
        grid_change: Between the grid of ``masks`` and that of ``masked``, where they differ. Default: None.
    """

    global_views: Tensor
    local_views: Tensor | None
    masks: Tensor
    masked: Tensor
    mask_shares: Tensor
    first: int
    whole: int
    grid_change: GridChange | None = None

    @property
    def num_images(self) -> int:
        """Of the piece."""
        return len(self.global_views) // 2

    @property
    def num_rows(self) -> dict[str, int]:
        """Class tokens by size of crops: ``2 * B`` of the global, ``L * B`` of the local ones."""
        return {'global': len(self.global_views), 'local': 0 if self.local_views is None else len(self.local_views)}

    @property
    def sizes(self) -> tuple[str, ...]:
        """Of the crops: ``'global'`` and, where there are any, ``'local'``."""
        return ('global',) if self.local_views is None else ('global', 'local')

    def whole_rows(self, size: str) -> int:
        """Class tokens of the crops of one size in the whole batch."""
        return self.num_rows[size] // self.num_images * self.whole

    def part(self, size: str) -> BatchPart | None:
        """Which crops of one size of the whole batch are there; None for all of them."""
        if self.num_images == self.whole:
            return None
        total = self.whole_rows(size)
        first_crops = torch.arange(0, total, self.whole)  # of each view, that of the first image
        places = first_crops[:, None] + torch.arange(self.first, self.first + self.num_images)
        return BatchPart(places.flatten(), total)

    @property
    def num_pieces(self) -> int:
        """One: itself."""
        return 1

    def pieces(self) -> Iterator[MultiCropBatch]:
        """Itself."""
        yield self

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
        cls,
        inputs: Sequence[Tensor],
        data_samples: Sequence | None,
        mask_grid: tuple[int, int],
        masked: bool,
        first: int = 0,
        whole: int | None = None,
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
            first: Place of the first image in the whole batch. Default: 0.
            whole: Number of images in the whole batch. Default: as many as there are here.

        Raises:
            TypeError: If ``inputs`` is not a sequence of tensors.
            ValueError: If a shape breaks the contract or a mask is missing.
        """
        check_views(inputs)
        global_views = torch.cat(list(inputs[:2]))
        device, images = global_views.device, len(inputs[0])
        if masked:
            masks = _stack_masks(data_samples, images, mask_grid)
        else:
            masks = torch.zeros(len(global_views), mask_grid[0] * mask_grid[1], dtype=torch.bool)
        whole = images if whole is None else whole
        number = masks.sum(dim=1, keepdim=True).clamp(min=1)  # (2B, 1)
        shares = (1 / (2 * whole * number)).expand_as(masks)[masks]
        return cls(
            global_views,
            torch.cat(list(inputs[2:])) if len(inputs) > 2 else None,
            *(sent(value, device) for value in (masks, masks.nonzero().T, shares)),
            first,
            whole,
        )


class MicroBatches:
    """A batch in pieces of as many images, or one more or less, each stacked when its turn comes.

    Args:
        inputs, data_samples, mask_grid, masked: Of the whole batch, as of :meth:`MultiCropBatch.collate`.
        number: Of pieces; if there are fewer images, each is a piece.

    Raises:
        TypeError, ValueError: As :meth:`MultiCropBatch.collate`.
    """

    def __init__(
        self,
        inputs: Sequence[Tensor],
        data_samples: Sequence | None,
        mask_grid: tuple[int, int],
        masked: bool,
        number: int,
    ):
        check_views(inputs)
        self.num_images = len(inputs[0])
        if masked:
            check_masks(data_samples, self.num_images, mask_grid)
        self._inputs, self._data_samples = inputs, data_samples
        self._options = dict(mask_grid=mask_grid, masked=masked, whole=self.num_images)
        number = min(number, self.num_images)
        bounds = [self.num_images * index // number for index in range(number + 1)]
        self._places = [slice(*pair) for pair in pairwise(bounds)]

    @property
    def num_pieces(self) -> int:
        """As many as asked for, or as there are images."""
        return len(self._places)

    @property
    def sizes(self) -> tuple[str, ...]:
        """As of :class:`MultiCropBatch`."""
        return ('global',) if len(self._inputs) == 2 else ('global', 'local')

    def pieces(self, first: int = 0) -> Iterator[MultiCropBatch]:
        """Those from number ``first`` on, in order."""
        for place in self._places[first:]:
            samples = None if self._data_samples is None else self._data_samples[place]
            views = [view[place] for view in self._inputs]
            yield MultiCropBatch.collate(views, samples, first=place.start, **self._options)


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
