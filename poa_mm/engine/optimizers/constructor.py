"""Parameter groups of POA."""

from __future__ import annotations

import torch
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS
from torch import nn

from .layer_decay import LayerDecayOptimWrapperConstructor
from .optim_wrapper import POAAmpOptimWrapper


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class POAOptimWrapperConstructor(LayerDecayOptimWrapperConstructor):
    """Layer-wise learning-rate decay, each group marked for what else needs to know it.

    Adds to its base class:

    - ``patch_embed_lr_mult`` (float) in ``paramwise_cfg``: factor on the learning rate of the patch embedding,
      whatever the backbone has for one (its ``stem_modules``). Default: 1.
    - A group carries ``module``, the top-level module (for clipping), and ``prototypes``, whether it is
      prototype layers (for freezing).

    Bias, norm and LayerScale are the one-dimensional parameters: ``flat_decay_mult=0`` spares them.

    AdamW is the fused one, unless the config says otherwise, where this torch has it: it reads and writes everything
    once, without temporary copies of all weights.

    A mixed-precision wrapper is built as the plain one where mmengine has no device but the CPU.
    """

    options = (*LayerDecayOptimWrapperConstructor.options, 'patch_embed_lr_mult')

    def _mark(self, name: str, group: dict) -> None:
        if name.startswith(self._stem):
            patch_embed_lr_mult = self.paramwise_cfg.get('patch_embed_lr_mult', 1.0)
            group['lr'] *= patch_embed_lr_mult
            group['lr_scale'] *= patch_embed_lr_mult
        group['module'] = name.split('.')[0]
        group['prototypes'] = '.prototypes.' in f'.{name}'

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimizer and its wrapper."""
        backbone = getattr(model, 'module', model).backbone  # out of DistributedDataParallel
        self._stem = tuple(f'backbone.{module}.' for module in backbone.stem_modules)
        cfg = self.optim_wrapper_cfg
        wrapper = cfg.get('type')
        wrapper = OPTIM_WRAPPERS.get(wrapper) if isinstance(wrapper, str) else wrapper
        if wrapper is POAAmpOptimWrapper and get_device() == 'cpu':
            print_log('No accelerator: training in float32 instead of mixed precision.', logger='current')
            cfg['type'] = 'POAOptimWrapper'
            for key in ('dtype', 'loss_scale', 'use_fsdp'):
                cfg.pop(key, None)
        is_adamw = self.optimizer_cfg['type'] in ('AdamW', torch.optim.AdamW)
        if is_adamw and has_fused_adamw(next(model.parameters()).device):
            self.optimizer_cfg.setdefault('fused', True)
        return super().__call__(model)


def has_fused_adamw(device: torch.device) -> bool:
    """Whether torch has a fused AdamW for parameters on ``device``: for CPUs since 2.4."""
    try:
        torch.optim.AdamW([nn.Parameter(torch.zeros(1, device=device))], fused=True)
    except RuntimeError:
        return False
    return True
