"""Several processes on CPUs: normalisation over all of them, which torch has for GPUs only, becomes each one's own."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import Any

from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from mmengine.registry import MODEL_WRAPPERS, MODELS, Registry
from torch import nn

SYNC_BN = ('SyncBN', 'MMSyncBN', 'SyncBatchNorm')  # names in mmcv's registry, and of the classes
UNSYNCED = 'SyncBN needs GPUs: each process normalises with the statistics of its own images (BN).'


def unsync_bn(config: Any, registry: Registry = MODELS) -> int:
    """Replace SyncBN by BN in a nested config, in place; also where it is what a class takes by default.

    Args:
        config: Of a model, or anything inside it.
        registry: Where to look for the classes that it names. Default: the root, and then all below.

    Returns:
        How many there were.
    """
    count = 0
    if isinstance(config, Mapping):
        kind = config.get('type')
        if getattr(kind, '__name__', kind) in SYNC_BN:
            config['type'] = 'BN'
            count = 1
        for name, default in _defaults(kind, registry).items():
            if name not in config:
                config[name] = {**default, 'type': 'BN'}
                count += 1
        config = list(config.values())
    elif not isinstance(config, (list, tuple)):
        return 0
    return count + sum(unsync_bn(value, registry) for value in config)


def _defaults(kind: Any, registry: Registry) -> dict[str, Mapping[str, Any]]:
    """The arguments of a class that are a SyncBN where they are not given."""
    kind = _found(kind, registry) if isinstance(kind, str) else kind
    if not inspect.isclass(kind):
        return {}
    defaults = {name: parameter.default for name, parameter in inspect.signature(kind).parameters.items()}
    return {
        name: default
        for name, default in defaults.items()
        if isinstance(default, Mapping) and default.get('type') in SYNC_BN
    }


def _found(name: str, registry: Registry) -> type | None:
    found = registry.get(name)
    return found or next(filter(None, (child.get(name) for child in registry.children.values())), None)


@MODEL_WRAPPERS.register_module()
class CPUDistributedDataParallel(MMDistributedDataParallel):
    """``MMDistributedDataParallel`` for CPUs, whose SyncBN layers, whoever made them, become BN."""

    def __init__(self, module: nn.Module, *args: Any, **kwargs: Any):
        if any(isinstance(layer, nn.SyncBatchNorm) for layer in module.modules()):
            module = revert_sync_batchnorm(module)
            if is_main_process():
                print_log(UNSYNCED, 'current', logging.WARNING)
        super().__init__(module, *args, **kwargs)
