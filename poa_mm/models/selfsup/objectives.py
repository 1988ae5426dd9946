"""What a student is to predict for crops of one size, on one head."""

from __future__ import annotations

from torch import Tensor

from ..losses import Targets
from .batch import MultiCropBatch
from .targets import TeacherTargets


def cross_view(
    name: str, scale: float, patch_weight: float, size: str, batch: MultiCropBatch, targets: TeacherTargets, head: int
) -> dict[str, Targets]:
    """The teacher's targets of other views (POA, Eq. 2 and 3) and of masked patches (iBOT, Sec. 3.2).

    Global crop A learns from the teacher's B and B from A, every local crop learns from both: the mean over the
    batch, summed over the pairs of views and divided by their number, ``2 + 2 * L``. Every masked image counts the
    same in the patch loss.

    Args:
        name: Of the loss, with which the names of the terms begin.
        scale: Weight of the class loss in the total.
        patch_weight: Weight of the patch loss beside the class loss.
        size: Of the crops, one of ``batch.sizes``.
        batch: Where the crops are from.
        targets: Of the teacher.
        head: Number of the head.
    """
    cls = targets.cls[head]
    num_cls, images = batch.num_rows[size], batch.num_images
    pairs = batch.whole + batch.whole_rows('local')  # half of them, of all images of the whole batch
    share = cls.new_full((num_cls,), 1 / (2 * pairs))
    if size == 'local':
        both = (cls[:images] + cls[images:]).T.repeat(1, num_cls // images).T
        return {f'{name}_local': Targets(both, share, scale)}
    objectives = {f'{name}_global': Targets(cls.T.roll(images, dims=1).T, share, scale)}
    if targets.patch:
        patch = targets.patch[head]
        objectives[f'{name}_patch'] = Targets(patch, batch.mask_shares, scale * patch_weight, start=num_cls)
    return objectives


def same_view(probs: Tensor, scale: float, size: str, batch: MultiCropBatch) -> Targets:
    """What the intact student makes of the class tokens of the same crops on one head, not centred (POA, Eq. 4).

    Args:
        probs: Its distributions over the prototypes, ``(N, K)``.
        scale: Weight of the loss in the total.
        size: Of the crops, one of ``batch.sizes``.
        batch: Where the crops are from.
    """
    share = probs.new_full((len(probs),), 1 / batch.whole_rows(size))
    return Targets(probs, share, scale)
