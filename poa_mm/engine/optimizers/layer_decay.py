"""Layer-wise learning-rate decay for any model with a backbone that knows its depth."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIMIZERS
from mmpretrain.engine.optimizers import LearningRateDecayOptimWrapperConstructor
from torch import nn


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(LearningRateDecayOptimWrapperConstructor):
    """Layer-wise learning-rate decay for the models of mmdet, mmseg and mmpretrain alike, with few groups.

    mmpretrain's constructor, which asks the model for the depth of a parameter, but models of mmdet and mmseg
    cannot answer. This one asks the backbone: of ``D`` layers with the embeddings as layer 0, layer ``i`` of
    ``backbone.*`` is scaled by ``layer_decay_rate ** (D - 1 - i)``. Necks and heads belong to the last layer
    and keep their learning rate.

    All of mmpretrain's ``paramwise_cfg`` is understood: ``layer_decay_rate`` (default: 1, no decay),
    ``norm_decay_mult``, ``bias_decay_mult``, ``flat_decay_mult`` and ``custom_keys``, each setting of which may
    have a ``decay_mult``. Other entries are refused rather than ignored.

    Parameters with equal settings share a group; frozen ones are left out, shared ones are in a single group,
    that of the first name they go by.

    Where the config of the optimizer gives no ``lr`` or ``weight_decay``, the defaults of its class are scaled. An
    optimizer that knows no weight decay gets none.

    Raises:
        ValueError: If ``paramwise_cfg`` has an unknown entry, or an ``lr_mult``, which mmpretrain ignores; if it scales
            the weight decay of an optimizer that has none; if there is no learning rate.
        TypeError: If neither the model nor its backbone has a ``get_layer_depth``.
    """

    options = ('layer_decay_rate', 'norm_decay_mult', 'bias_decay_mult', 'flat_decay_mult', 'custom_keys')

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None):
        given = dict(optim_wrapper_cfg['optimizer'])
        defaults = _defaults(given) if {'lr', 'weight_decay'} - set(given) else {}
        optimizer = {name: defaults[name] for name in ('lr', 'weight_decay') if name in defaults} | given
        kind = given.get('type')
        if optimizer.get('lr') is None:
            raise ValueError(f'optimizer {kind!r} has no learning rate of its own to scale: say lr=...')
        self.knows_decay = 'weight_decay' in optimizer
        paramwise_cfg = paramwise_cfg or {}
        scaled = [key for key in paramwise_cfg if key.endswith('_decay_mult')]
        scaled += [key for key, cfg in (paramwise_cfg.get('custom_keys') or {}).items() if 'decay_mult' in cfg]
        if scaled and not self.knows_decay:
            raise ValueError(
                f'paramwise_cfg scales the weight decay ({", ".join(scaled)}), but optimizer {kind!r} has none'
            )
        # mmpretrain's constructor cannot do without either; the optimizer is built as the config says.
        super().__init__({**optim_wrapper_cfg, 'optimizer': {'weight_decay': 0.0} | optimizer}, paramwise_cfg)
        self.optimizer_cfg = given

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        if unknown := self.paramwise_cfg.keys() - set(self.options):
            raise ValueError(
                f'paramwise_cfg has {", ".join(map(repr, sorted(unknown)))}; '
                f'{type(self).__name__} knows {", ".join(self.options)}'
            )
        if scaled := [key for key, cfg in self.paramwise_cfg.get('custom_keys', {}).items() if 'lr_mult' in cfg]:
            raise ValueError(f"paramwise_cfg.custom_keys[{scaled[0]!r}]: 'lr_mult' does not go with layer-wise decay")

    def add_params(
        self,
        params: list[dict],
        module: nn.Module,
        prefix: str = '',
        get_layer_depth: Callable | None = None,
        **kwargs,
    ) -> None:
        """Fill ``params`` with the parameter groups of ``module``."""
        super().add_params(params, module, prefix, get_layer_depth or depth_function(module), **kwargs)
        if prefix == '':
            params[:] = self._merged(params)

    def _merged(self, params: list[dict]) -> list[dict]:
        """Join the groups of one parameter each that have equal settings."""
        groups: dict[tuple, dict] = {}
        seen = set()
        for group in params:
            (param,) = group.pop('params')
            if param in seen:
                continue
            seen.add(param)
            self._mark(group.pop('param_name'), group)
            if not self.knows_decay:
                group.pop('weight_decay', None)
            groups.setdefault(tuple(sorted(group.items())), {**group, 'params': []})['params'].append(param)
        return list(groups.values())

    def _mark(self, name: str, group: dict) -> None:
        """Change what ``group``, the settings of the parameter ``name``, holds. For subclasses."""


def _defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of an optimizer by its config and, where that is silent, by its class."""
    config = {key: value for key, value in config.items() if key != 'fused'}  # may need a GPU
    kind = config.get('type')
    if isinstance(kind, str):
        with OPTIMIZERS.switch_scope_and_registry(None) as registry:
            kind = registry.get(kind)
    if kind is None:
        return {'lr': config.get('lr', 0.0)}  # building it will say what it is not
    params = next(iter(inspect.signature(kind).parameters))
    try:
        return OPTIMIZERS.build({**config, params: [nn.Parameter(torch.zeros(1))]}).defaults
    except Exception as error:  # whatever the class raises, some need all processes
        raise ValueError(
            f'cannot find out the default lr and weight_decay of optimizer {config.get("type")!r}; say both: {error}'
        ) from error


def depth_function(model: nn.Module) -> Callable[[str], tuple[int, int]]:
    """What gives, for the name of a parameter of ``model``, its layer and the number of layers.

    Raises:
        TypeError: If neither the model nor its backbone has a ``get_layer_depth``.
    """
    if hasattr(model, 'get_layer_depth'):
        return model.get_layer_depth
    backbone = getattr(model, 'backbone', None)
    if hasattr(backbone, 'get_layer_depth'):
        return partial(backbone.get_layer_depth, prefix='backbone.')
    raise TypeError(
        'layer-wise decay needs a backbone with get_layer_depth, such as those of mmpretrain; '
        f"{type(model).__name__}'s is {'missing' if backbone is None else type(backbone).__name__}"
    )
