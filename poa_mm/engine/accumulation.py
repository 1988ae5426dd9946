"""Where a run is between two updates of gradient accumulation."""

from __future__ import annotations

from typing import Any

from mmengine.optim import OptimWrapper, OptimWrapperDict


def waiting_batches(optim_wrapper: Any) -> int:
    """Batches whose gradients wait for an update.

    They are in no checkpoint, so one that is written now could not be resumed exactly.

    Args:
        optim_wrapper: Optimizer wrapper of a run, or a dict of them.

    Returns:
        0 right after an update, before the first iteration, and for what is no wrapper of mmengine.
    """
    if isinstance(optim_wrapper, OptimWrapperDict):
        return max(map(waiting_batches, optim_wrapper.values()), default=0)
    if not isinstance(optim_wrapper, OptimWrapper) or optim_wrapper.should_update():
        return 0
    return optim_wrapper.inner_count % optim_wrapper._accumulative_counts
