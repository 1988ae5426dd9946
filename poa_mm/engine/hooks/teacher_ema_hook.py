"""The teacher follows the student."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor
from torch.optim import Optimizer

from ..optimizers import GuardedOptimWrapper
from .model import model_of
from .once import OnceHook


def cosine(start: float, end: float, step: float, total: float) -> float:
    """Value at ``step`` of a half cosine from ``start`` at 0 to ``end`` at ``total``."""
    return end + (start - end) * (1 + math.cos(math.pi * min(step / total, 1))) / 2


@HOOKS.register_module()
class TeacherEMAHook(OnceHook):
    """Moves the teacher towards the student after each optimizer step (POA, Sec. 3.1).

    ``teacher = m * teacher + (1 - m) * student`` with ``m`` rising along a half cosine over the run.
    An iteration without a step (gradient accumulation, or overflow under a gradient scaler) leaves the
    teacher alone. The momentum of the last step is logged as ``ema_momentum``.

    Args:
        momentum: First and last value of ``m``. Default: (0.992, 0.9999).
        stretch: Length of the cosine in lengths of the run, at which it is cut: ``1 / s`` for the
            authors' ``iter_num_scale`` of ``s``. Default: 1.

    Raises:
        ValueError: If a momentum is not in [0, 1] or ``stretch`` is below 1.
    """

    def __init__(self, momentum: Sequence[float] = (0.992, 0.9999), stretch: float = 1.0):
        if len(momentum) != 2 or not all(0 <= m <= 1 for m in momentum):
            raise ValueError(f'momentum {momentum} must be two numbers in [0, 1]')
        if stretch < 1:
            raise ValueError(f'stretch {stretch} is below 1')
        self.momentum = tuple(momentum)
        self.stretch = stretch
        self._stepped = False
        self._found_inf: Tensor | None = None

    def before_train(self, runner: Runner) -> None:
        """Find the pairs of parameters and listen to the optimizer."""
        model = model_of(runner)
        pairs = []
        for name, student in model.student.items():
            pairs += zip(model.teacher[name].parameters(), student.parameters(), strict=True)
        self._teacher, self._student = map(list, zip(*pairs))
        runner.optim_wrapper.optimizer.register_step_post_hook(self._note_step)

    def _note_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        # A gradient scaler does not call step() on overflow, but for fused optimizers, which are
        # called, given the flag as an attribute and do nothing.
        self._stepped, self._found_inf = True, getattr(optimizer, 'found_inf', None)

    def _student_moved(self, optim_wrapper: OptimWrapper) -> bool:
        """Whether there was an optimizer step since the last call."""
        stepped, self._stepped = self._stepped, False
        found_inf, self._found_inf = self._found_inf, None
        if isinstance(optim_wrapper, GuardedOptimWrapper):
            return stepped and not optim_wrapper.skipped  # which it knows without asking the device
        return stepped and (found_inf is None or not found_inf.item())

    @torch.no_grad()
    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Update the teacher if the student moved."""
        if not self._student_moved(runner.optim_wrapper):
            return
        momentum = cosine(*self.momentum, runner.iter, self.stretch * runner.max_iters)
        torch._foreach_lerp_(self._teacher, self._student, 1 - momentum)
        runner.message_hub.update_scalar('train/ema_momentum', momentum)
