"""What happens around steps that were left out for NaN or infinity."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from mmengine.dist import get_rank
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

from poa_mm.mistakes import UserError

from ..optimizers import GuardedOptimWrapper
from .model import model_of
from .once import OnceHook


class NonFiniteError(UserError, FloatingPointError):
    """Losses or gradients have not been finite for too many iterations in a row."""


@HOOKS.register_module()
class NonFiniteHook(OnceHook):
    """Undoes iterations whose loss or gradients are not finite, and stops a run in which they do not end.

    The optimizer wrapper leaves out the step, on all ranks alike, and so does :class:`TeacherEMAHook`. This
    hook puts back the model's buffers (statistics of batch norm, centres of the teacher), so that such an
    iteration changes no weight, buffer or optimizer state, and a checkpoint written meanwhile holds the last
    good ones. The schedules, the data and the deck of subnets go on.

    After ``max_in_a_row`` of them, each rank writes ``nonfinite_iter_{iteration}_rank{rank}.json`` into the work
    dir and stops. The file says which iteration it was (from 0), the subnet, each term of the loss, and the
    index and, where there is one, the path of each image of the batch.

    Args:
        max_in_a_row: Iterations without a step that stop the run. Default: 10.

    Raises:
        ValueError: If ``max_in_a_row`` is below 1.
    """

    priority = 'LOW'  # after the log, before the checkpoint

    def __init__(self, max_in_a_row: int = 10):
        if max_in_a_row < 1:
            raise ValueError(f'max_in_a_row {max_in_a_row} is below 1')
        self.max_in_a_row = max_in_a_row

    def before_train(self, runner: Runner) -> None:
        """Check that steps are guarded and find the buffers.

        Raises:
            TypeError: If the optimizer wrapper is one that steps in any case.
        """
        if not isinstance(runner.optim_wrapper, GuardedOptimWrapper):
            raise TypeError(
                f'NonFiniteHook needs an optimizer wrapper of type POAOptimWrapper or POAAmpOptimWrapper; '
                f'got {type(runner.optim_wrapper).__name__}'
            )
        self._buffers = [buffer for buffer in model_of(runner).buffers() if buffer.is_floating_point()]
        self._remember()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        """Remember the buffers, as they were after the last step."""
        if runner.optim_wrapper.should_update():  # not in the middle of gradient accumulation
            self._remember()

    def _remember(self) -> None:
        self._before = [buffer.clone() for buffer in self._buffers]

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Undo an iteration without a step.

        Raises:
            NonFiniteError: If it is one too many.
        """
        if not runner.optim_wrapper.skipped:
            return
        with torch.no_grad():
            for buffer, before in zip(self._buffers, self._before):
                buffer.copy_(before)
        in_a_row = runner.optim_wrapper.skipped_in_a_row
        if not in_a_row:  # a gradient scaler at work
            return
        what = f'loss or gradients of iteration {runner.iter} are not finite'
        runner.logger.warning(f'{what} ({in_a_row} in a row, {self.max_in_a_row} stop the run): nothing was updated.')
        if in_a_row >= self.max_in_a_row:
            path = Path(runner.work_dir, f'nonfinite_iter_{runner.iter}_rank{get_rank()}.json')
            path.write_text(json.dumps(describe_iteration(runner, data_batch, outputs), indent=1, default=str))
            raise NonFiniteError(f'{what}, the last of {in_a_row} in a row; see {path}')


def describe_iteration(runner: Runner, data_batch: dict, outputs: dict) -> dict:
    """What an iteration of this rank computed, as plain data; numbers that are not finite are text."""
    samples = data_batch.get('data_samples') or []
    deck = getattr(model_of(runner), 'deck', None)
    return dict(
        iteration=runner.iter,
        rank=get_rank(),
        subnet=str(deck.last) if deck and deck.last else None,
        losses={name: _number(value) for name, value in (outputs or {}).items()},
        sample_idx=[sample.get('sample_idx') for sample in samples],
        img_path=[sample.get('img_path') for sample in samples],
    )


def _number(value: Tensor | float) -> float | str:
    value = float(value)
    return value if abs(value) < float('inf') else str(value)
