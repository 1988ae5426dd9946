"""Block-wise masks of the global crops."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS
from mmengine.utils import to_2tuple

MIN_ASPECT = 0.3  # smallest aspect ratio of a block; the largest is its inverse


@TRANSFORMS.register_module()
class BlockMask(BaseTransform):
    """Draws a mask of rectangular blocks for each global crop (BEiT, Algorithm 1; used by iBOT and POA).

    A crop is masked with probability ``prob``; then the number of masked patches is aimed at a share
    drawn uniformly from ``ratio``. Blocks are added until the aim is reached or nothing more fits; it is
    never exceeded. Where the authors' code masks exactly half of the crops of a batch with evenly spaced
    ratios, each sample here draws for itself from the same distribution, so that a sample's mask does
    not depend on the batch it falls into.

    Added keys: ``mask``, boolean array ``(num_masks, rows, columns)``, True where masked.

    Args:
        grid: Rows and columns of patches of a global crop, or one number for both.
        prob: Probability that a crop is masked. Default: 0.5.
        ratio: Range of the share of masked patches. Default: (0.1, 0.5).
        num_masks: Number of masks, one for each global crop. Default: 2.
        min_patches: Smallest area of a block in patches. Default: 4.

    Raises:
        ValueError: If a probability, ratio or size is out of range.
    """

    def __init__(
        self,
        grid: int | Sequence[int],
        prob: float = 0.5,
        ratio: Sequence[float] = (0.1, 0.5),
        num_masks: int = 2,
        min_patches: int = 4,
    ):
        self.grid = to_2tuple(grid)
        if min(self.grid) < 1:
            raise ValueError(f'grid {grid} must be positive')
        if not 0 <= prob <= 1:
            raise ValueError(f'prob {prob} is not in [0, 1]')
        if len(ratio) != 2 or not 0 <= ratio[0] <= ratio[1] <= 1:
            raise ValueError(f'ratio {ratio} must be two rising numbers in [0, 1]')
        if min_patches < 1:
            raise ValueError(f'min_patches {min_patches} is below 1')
        self.prob = prob
        self.ratio = tuple(ratio)
        self.num_masks = num_masks
        self.min_patches = min_patches

    def transform(self, results: dict) -> dict:
        """Add ``mask`` to ``results``."""
        results['mask'] = np.stack([self._draw() for _ in range(self.num_masks)])
        return results

    def _draw(self) -> np.ndarray:
        """One mask, ``(rows, columns)``."""
        mask = np.zeros(self.grid, dtype=bool)
        if np.random.rand() < self.prob:
            aim = int(mask.size * np.random.uniform(*self.ratio))
            while mask.sum() < aim and self._add_block(mask, aim - mask.sum()):
                pass
        return mask

    def _add_block(self, mask: np.ndarray, room: int) -> bool:
        """Mask one more block with at most ``room`` new patches; False if ten tries find none."""
        rows, columns = self.grid
        log_aspect = math.log(MIN_ASPECT)
        for _ in range(10):
            area = np.random.uniform(min(self.min_patches, room), room)
            aspect = math.exp(np.random.uniform(log_aspect, -log_aspect))
            height = round(math.sqrt(area * aspect))
            width = round(math.sqrt(area / aspect))
            if not (0 < height < rows and 0 < width < columns):
                continue
            top = np.random.randint(rows - height + 1)
            left = np.random.randint(columns - width + 1)
            block = mask[top : top + height, left : left + width]
            if 0 < block.size - block.sum() <= room:
                block[:] = True
                return True
        return False

    def __repr__(self) -> str:
        return f'{type(self).__name__}(grid={self.grid}, prob={self.prob}, ratio={self.ratio})'
