"""Layer-wise learning-rate decay for any model with a backbone that knows its depth."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
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

    Raises:
        ValueError: If ``paramwise_cfg`` has an unknown entry, or an ``lr_mult``, which mmpretrain ignores.
        TypeError: If neither the model nor its backbone has a ``get_layer_depth``.
    """

    options = ('layer_decay_rate', 'norm_decay_mult', 'bias_decay_mult', 'flat_decay_mult', 'custom_keys')

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
            groups.setdefault(tuple(sorted(group.items())), {**group, 'params': []})['params'].append(param)
        return list(groups.values())

    def _mark(self, name: str, group: dict) -> None:
        """Change what ``group``, the settings of the parameter ``name``, holds. For subclasses."""


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
