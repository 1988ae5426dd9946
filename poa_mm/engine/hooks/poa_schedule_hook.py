"""What changes in POA over a run, beside learning rate and weight decay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.optim import Optimizer

from poa_mm.models.selfsup.batch import check_masks

from .model import model_of
from .once import OnceHook

if TYPE_CHECKING:
    from poa_mm.models.selfsup import POA

BACKBONE = 'backbone'  # what its parameter groups name as their module


@HOOKS.register_module()
class POAScheduleHook(OnceHook):
    """Schedules the teacher temperature, the patch loss and what is frozen for a while: prototypes, the backbone.

    All lengths are in iterations. The temperature in force is logged as ``teacher_temp``.

    Args:
        teacher_temp: First and last temperature of the teacher, linear in between. Default: (0.04, 0.07).
        teacher_temp_iters: Length of the ramp. Default: 0, the last value from the start.
        patch_loss_start: First iteration with patch loss and masks. Default: 0.
        freeze_prototypes_iters: Iterations in which the prototype layers keep their weights; needs
            :class:`~poa_mm.engine.POAOptimWrapperConstructor`. Default: 0.
        freeze_backbone_iters: Iterations in which only the heads are trained, which a run needs that starts from a
            trained backbone with fresh heads. The optimizer gets no gradient of the backbone, so neither weight decay
            nor momentum moves it, and it remembers nothing of that time. Needs the same constructor. Default: 0.

    Raises:
        ValueError: If a temperature is not positive or a length is negative.
    """

    def __init__(
        self,
        teacher_temp: Sequence[float] = (0.04, 0.07),
        teacher_temp_iters: int = 0,
        patch_loss_start: int = 0,
        freeze_prototypes_iters: int = 0,
        freeze_backbone_iters: int = 0,
    ):
        if len(teacher_temp) != 2 or min(teacher_temp) <= 0:
            raise ValueError(f'teacher_temp {teacher_temp} must be two positive numbers')
        lengths = dict(
            teacher_temp_iters=teacher_temp_iters,
            patch_loss_start=patch_loss_start,
            freeze_prototypes_iters=freeze_prototypes_iters,
            freeze_backbone_iters=freeze_backbone_iters,
        )
        if min(lengths.values()) < 0:
            raise ValueError(f'lengths must not be negative; got {lengths}')
        self.teacher_temp = tuple(teacher_temp)
        self.teacher_temp_iters = teacher_temp_iters
        self.patch_loss_start = patch_loss_start
        self.freeze_prototypes_iters = freeze_prototypes_iters
        self.freeze_backbone_iters = freeze_backbone_iters
        self._backbone_frozen = False
        self._frozen: list[tuple[dict, float]] = []
        self._masks_checked = False

    def teacher_temp_at(self, iteration: int) -> float:
        """Teacher temperature at ``iteration``; the ramp's last value is at ``teacher_temp_iters - 1``."""
        start, end = self.teacher_temp
        if iteration >= self.teacher_temp_iters - 1:
            return end
        return start + (end - start) * iteration / (self.teacher_temp_iters - 1)

    def before_train(self, runner: Runner) -> None:
        """Check that there is something to freeze, and listen to the optimizer.

        Raises:
            ValueError: If freezing is asked for and no parameter group is marked.
        """
        groups = runner.optim_wrapper.param_groups
        for name, marked in (
            ('freeze_prototypes_iters', any(group.get('prototypes') for group in groups)),
            ('freeze_backbone_iters', any(group.get('module') == BACKBONE for group in groups)),
        ):
            if getattr(self, name) and not marked:
                raise ValueError(f'{name} needs parameter groups marked by constructor=POAOptimWrapperConstructor')
        if runner.iter < self.freeze_backbone_iters:
            runner.optim_wrapper.optimizer.register_step_pre_hook(self._spare_backbone)

    def _spare_backbone(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        """Take the gradients of the backbone away: an optimizer leaves parameters without gradient alone."""
        if self._backbone_frozen:
            for group in optimizer.param_groups:
                if group.get('module') == BACKBONE:
                    for param in group['params']:
                        param.grad = None

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        """Set the values of this iteration.

        Raises:
            ValueError: Before the first one, if the masks would not fit when the patch loss starts.
        """
        model = model_of(runner)
        if not self._masks_checked and data_batch is not None:
            self._check_masks(runner, model, data_batch)
        model.teacher_temp = self.teacher_temp_at(runner.iter)
        model.patch_loss_active = runner.iter >= self.patch_loss_start
        runner.message_hub.update_scalar('train/teacher_temp', model.teacher_temp)
        self._backbone_frozen = runner.iter < self.freeze_backbone_iters
        if runner.iter < self.freeze_prototypes_iters:
            for group in runner.optim_wrapper.param_groups:
                if group.get('prototypes'):
                    self._frozen.append((group, group['lr']))
                    group['lr'] = 0.0

    def _check_masks(self, runner: Runner, model: POA, data_batch: Mapping[str, Any]) -> None:
        self._masks_checked = True
        if model.patch_weight > 0 and self.patch_loss_start < runner.max_iters:
            view = data_batch['inputs'][0]  # (B, C, H, W)
            check_masks(data_batch.get('data_samples'), len(view), model.backbone.mask_grid(tuple(view.shape[-2:])))

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Give frozen groups their learning rate back, from which the schedulers compute the next one."""
        for group, lr in self._frozen:
            group['lr'] = lr
        self._frozen.clear()
