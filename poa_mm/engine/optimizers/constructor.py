"""Parameter groups of POA."""

from __future__ import annotations

from collections.abc import Callable

from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS
from mmpretrain.engine.optimizers import LearningRateDecayOptimWrapperConstructor
from torch import nn

from .optim_wrapper import POAAmpOptimWrapper


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class POAOptimWrapperConstructor(LearningRateDecayOptimWrapperConstructor):
    """Layer-wise learning-rate decay with few groups, each marked for what else needs to know it.

    Adds to mmpretrain's constructor, of which all of ``paramwise_cfg`` is understood:

    - ``patch_embed_lr_mult`` (float): factor on the learning rate of the patch embedding, whatever the
      backbone has for one (its ``stem_modules``). Default: 1.
    - Parameters with equal settings share a group; a group carries ``module``, the top-level module
      (for clipping), and ``prototypes``, whether it is prototype layers (for freezing).

    Bias, norm and LayerScale are the one-dimensional parameters: ``flat_decay_mult=0`` spares them.

    A mixed-precision wrapper is built as the plain one where mmengine has no device but the CPU.
    """

    def add_params(
        self,
        params: list[dict],
        module: nn.Module,
        prefix: str = '',
        get_layer_depth: Callable | None = None,
        **kwargs,
    ) -> None:
        """Fill ``params`` with the parameter groups of ``module``."""
        super().add_params(params, module, prefix, get_layer_depth, **kwargs)
        if prefix == '':
            params[:] = self._merged(params)

    def _merged(self, params: list[dict]) -> list[dict]:
        patch_embed_lr_mult = self.paramwise_cfg.get('patch_embed_lr_mult', 1.0)
        groups: dict[tuple, dict] = {}
        for param in params:
            name = param.pop('param_name')
            if name.startswith(self._stem):
                param['lr'] *= patch_embed_lr_mult
                param['lr_scale'] *= patch_embed_lr_mult
            param['module'] = name.split('.')[0]
            param['prototypes'] = '.prototypes.' in f'.{name}'
            key = tuple(sorted((k, v) for k, v in param.items() if k != 'params'))
            groups.setdefault(key, {**param, 'params': []})['params'] += param['params']
        return list(groups.values())

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimizer and its wrapper."""
        self._stem = tuple(f'backbone.{module}.' for module in model.backbone.stem_modules)
        cfg = self.optim_wrapper_cfg
        wrapper = cfg.get('type')
        wrapper = OPTIM_WRAPPERS.get(wrapper) if isinstance(wrapper, str) else wrapper
        if wrapper is POAAmpOptimWrapper and get_device() == 'cpu':
            print_log('No accelerator: training in float32 instead of mixed precision.', logger='current')
            cfg['type'] = 'POAOptimWrapper'
            for key in ('dtype', 'loss_scale', 'use_fsdp'):
                cfg.pop(key, None)
        return super().__call__(model)
