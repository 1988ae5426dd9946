"""Optimizer wrappers that clip the gradient of each top-level module by itself."""

from __future__ import annotations

from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import Tensor


class _ClipByModule:
    """Clips backbone and head separately (POA, implementation details)."""

    def _clip_grad(self) -> None:
        """Clip the gradients of each ``module`` that the parameter groups name; log each norm."""
        modules: dict[str, list[Tensor]] = {}
        for group in self.optimizer.param_groups:
            trained = [p for p in group['params'] if p.grad is not None]
            modules.setdefault(group.get('module', 'model'), []).extend(trained)
        for name, params in modules.items():
            if params:
                norm = self.clip_func(params, **self.clip_grad_kwargs)
                if norm is not None:  # clipping by value has none
                    self.message_hub.update_scalar(f'train/{self.grad_name}_{name}', norm)


@OPTIM_WRAPPERS.register_module()
class POAOptimWrapper(_ClipByModule, OptimWrapper):
    """mmengine's ``OptimWrapper``, clipping by module. The arguments are the same."""


@OPTIM_WRAPPERS.register_module()
class POAAmpOptimWrapper(_ClipByModule, AmpOptimWrapper):
    """mmengine's ``AmpOptimWrapper``, clipping by module. The arguments are the same.

    Built by :class:`POAOptimWrapperConstructor`, it gives way to :class:`POAOptimWrapper` on the CPU.
    """
