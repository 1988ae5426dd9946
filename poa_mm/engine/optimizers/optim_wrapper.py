"""Optimizer wrappers that clip each top-level module by itself and never step on NaN or infinity."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import Tensor, nn


class GuardedOptimWrapper:
    """Mixin that clips backbone and head separately (POA, implementation details) and guards the step.

    A step whose loss or gradients hold NaN or infinity is left out. Every rank decides the same without asking
    the others: a loss that is not finite makes its gradients NaN, gradients are averaged over the ranks, and
    the norms of the averages are the same everywhere.

    Gradients are accumulated from where a run begins, also one that is resumed: the first update comes after
    ``accumulative_counts`` batches and is their mean.

    The norms are read off the device once a step, as they are for the log; nothing else waits for it.

    Attributes:
        skipped (bool): Whether the step that this iteration was due for was left out.
        skipped_in_a_row (int): Steps left out, up to the last one. A gradient scaler that is still looking for
            its scale leaves out steps as a matter of course; those do not count.
    """

    skipped = False
    skipped_in_a_row = 0

    def initialize_count_status(self, model: nn.Module, init_counts: int, max_counts: int) -> None:
        """Count from ``init_counts``, where no gradient waits: checkpoints are written right after an update.

        mmengine counts from iteration 0. Where that is no multiple of ``accumulative_counts`` away, the first update
        would divide the gradients of a few batches by the number of all.
        """
        super().initialize_count_status(model, 0, max(max_counts - init_counts, 0))

    def backward(self, loss: Tensor, **kwargs) -> None:
        """Back-propagate ``loss``; all gradients of one that is not finite are NaN."""
        self.skipped = False
        # The factor is exactly 1 for a finite loss and NaN for any other.
        super().backward(loss * (1 + 0 * loss.detach()), **kwargs)

    def _clip_grad(self) -> bool:
        """Clip the gradients of each ``module`` that the parameter groups name; log the norms before.

        Returns:
            Whether all gradients were finite.
        """
        modules: dict[str, list[Tensor]] = {}
        for group in self.optimizer.param_groups:
            trained = [p for p in group['params'] if p.grad is not None]
            modules.setdefault(group.get('module', 'model'), []).extend(trained)
        by_norm = bool(self.clip_grad_kwargs) and self.grad_name == 'grad_norm'
        norms: dict[str, Tensor] = {}
        for name, params in modules.items():
            if not params:
                continue
            # Without a limit, this only measures.
            limit = self.clip_grad_kwargs if by_norm else dict(max_norm=math.inf)
            norms[name] = torch.nn.utils.clip_grad_norm_(params, **limit)
            if self.clip_grad_kwargs and not by_norm:
                self.clip_func(params, **self.clip_grad_kwargs)
        found = self._read(norms)
        for name, norm in found.items():
            self.message_hub.update_scalar(f'train/grad_norm_{name}', norm)
        return all(map(math.isfinite, found.values()))

    def _read(self, values: dict[str, Tensor]) -> dict[str, float]:
        """Numbers off the device: the one time that a step waits for it."""
        return {name: value.item() for name, value in values.items()}

    def load_state_dict(self, state_dict: dict) -> None:
        """Load what the optimizer remembers; whether a step is fused stays this run's choice.

        So a checkpoint of a GPU goes on without one, and the other way round.
        """
        options = ('fused', 'foreach')
        groups = [
            group | {key: mine[key] for key in options if key in group and key in mine}
            for group, mine in zip(state_dict['param_groups'], self.optimizer.param_groups)
        ]
        # One group too many or too few is for torch to complain about.
        groups += state_dict['param_groups'][len(groups) :]
        state_dict = {**state_dict, 'param_groups': groups}
        if not state_dict.get('loss_scaler', True):  # of a run without a scaler
            del state_dict['loss_scaler']
        super().load_state_dict(state_dict)

    def _note(self, skipped: bool, counts: bool = True) -> None:
        self.skipped = skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped and counts else 0


@OPTIM_WRAPPERS.register_module()
class POAOptimWrapper(GuardedOptimWrapper, OptimWrapper):
    """mmengine's ``OptimWrapper``, guarded and clipping by module. The arguments are the same."""

    def step(self, **kwargs) -> None:
        """Clip and step; without the step if anything is not finite."""
        finite = self._clip_grad()
        if finite:
            self.optimizer.step(**kwargs)
        self._note(skipped=not finite)


@OPTIM_WRAPPERS.register_module()
class POAAmpOptimWrapper(GuardedOptimWrapper, AmpOptimWrapper):
    """mmengine's ``AmpOptimWrapper``, guarded and clipping by module. The arguments are the same.

    Built by :class:`POAOptimWrapperConstructor`, it gives way to :class:`POAOptimWrapper` on the CPU.

    With ``dtype='bfloat16'``, which reaches as far as float32, the default is no gradient scaler.
    """

    def __init__(
        self, loss_scale: str | float | dict = 'dynamic', dtype: str | torch.dtype | None = None, **options: Any
    ):
        if loss_scale == 'dynamic' and dtype in ('bfloat16', torch.bfloat16):
            loss_scale = dict(enabled=False)
        super().__init__(loss_scale=loss_scale, dtype=dtype, **options)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Mixed precision for the forward pass of ``model``, with gradients that it takes on the way scaled alike."""
        poa = getattr(model, 'module', model)  # out of DistributedDataParallel
        # The scaler's factor without a look at its value, which would wait for the device.
        poa.loss_scale = self.loss_scaler.scale(torch.ones((), device=next(poa.parameters()).device))
        with super().optim_context(model):
            yield

    def step(self, **kwargs) -> None:
        """Clip and step; the scaler leaves out the step if anything is not finite, and then lowers its scale."""
        scaler = self.loss_scaler
        scaler.unscale_(self.optimizer)
        finite = self._clip_grad()
        # Overflow says nothing about the run as long as a lower scale may mend it.
        searching = not finite and self._scale_update_param is None and scaler.is_enabled() and scaler.get_scale() > 1
        if finite or scaler.is_enabled():  # a scaler knows when not to
            scaler.step(self.optimizer, **kwargs)
        scaler.update(self._scale_update_param)
        self._note(skipped=not finite, counts=not searching)
