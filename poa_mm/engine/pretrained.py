"""Weights that must fit the network they are loaded into, to the last key."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.model import PretrainedInit
from torch import nn

from poa_mm.checkpoint import CheckpointError, read_checkpoint, shorten

from .resume import SCHEME


def load_pretrained(model: nn.Module, new: Collection[str] = ()) -> None:
    """Load strictly what ``init_cfg=dict(type='Pretrained', checkpoint=FILE)`` names anywhere in ``model``.

    A check before mmengine loads the same file, whatever of it fits. The module's own adaptations of a
    checkpoint take place, such as resizing the position embedding. URLs are left to mmengine. Files become
    ``poa://FILE`` in the modules' ``init_cfg``, so that mmengine executes nothing in them either.

    Args:
        model: Model of a run, before its weights are initialised.
        new: As of :func:`load_weights`. Default: none.

    Raises:
        CheckpointError: If a file is missing, cannot be read or does not fit its module; names the module, the
            file, the keys and, as far as the file says so, the subnet it holds.
    """
    for name, module in model.named_modules():
        for cfg in _pretrained(getattr(module, 'init_cfg', None)):
            checkpoint = str(cfg['checkpoint'])
            if '://' in checkpoint:
                continue
            path = Path(checkpoint).expanduser()
            if not path.is_file():
                raise CheckpointError(
                    f'init_cfg of {name or "the model"}: there is no file {checkpoint} ({path.absolute()}); '
                    'tools/extract_subnet.py cuts it out of a checkpoint of the pre-training'
                )
            load_weights(module, path, cfg.get('prefix'), name, new)
            cfg['checkpoint'] = f'{SCHEME}{path}'


def _pretrained(init_cfg: Any) -> Iterator[Mapping[str, Any]]:
    """Those of one or several initialisation configs that name a checkpoint."""
    for cfg in init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]:
        if isinstance(cfg, Mapping) and cfg.get('type') in ('Pretrained', PretrainedInit):
            yield cfg


def load_weights(
    module: nn.Module,
    path: str | os.PathLike,
    prefix: str | None = None,
    name: str = '',
    new: Collection[str] = (),
) -> None:
    """Load a checkpoint file into a module, of which every key must fit. Nothing in the file is executed.

    Args:
        module: Network of any kind; its hooks adapt the weights as they do for mmengine.
        path: File as :func:`~poa_mm.checkpoint.read_checkpoint` takes it, with an entry ``state_dict``
            or weights only.
        prefix: Take the keys below this prefix only, as mmengine's ``PretrainedInit`` does. Default: all.
        name: What errors call the module. Default: the name of its class only.
        new: Names of submodules that pre-training may not have had: the file has all weights of such a one, or
            none, which leaves those it has. Names of submodules that there are not do nothing. Default: none.

    Raises:
        CheckpointError: If the file is missing or broken, or a key is missing, unexpected or of another shape.
    """
    checkpoint = read_checkpoint(path)
    weights = checkpoint.get('state_dict', checkpoint)
    if not isinstance(weights, Mapping):
        raise CheckpointError(f"{path}: expected a dict as 'state_dict', found {type(weights).__name__}")
    if prefix is None:
        weights = {re.sub(r'^module\.', '', str(key)): value for key, value in weights.items()}
    else:
        start = prefix if prefix.endswith('.') else f'{prefix}.'
        found, weights = weights, {str(k)[len(start) :]: v for k, v in weights.items() if str(k).startswith(start)}
        if not weights:
            raise CheckpointError(f'{path}: expected weights {start}*, found only {shorten(found)}')

    if wrong := _load(module, weights, new):
        meta = checkpoint.get('meta')
        subnet = meta.get('subnet') if isinstance(meta, Mapping) else None
        what = f'{name} ({type(module).__name__})' if name else type(module).__name__
        holds = f'; the file holds subnet {subnet}' if subnet else ''
        raise CheckpointError(f'{path} does not fit {what}: {"; ".join(wrong)}{holds}')


def _load(module: nn.Module, weights: Mapping[str, Any], new: Collection[str]) -> list[str]:
    """Load and say what does not fit."""
    try:
        keys = module.load_state_dict(weights, strict=False)  # which still refuses other shapes
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        lines = lines[1:] or lines  # torch's headline says no more than that there are errors
        return lines[:3] + ([f'and {len(lines) - 3} more'] if len(lines) > 3 else [])
    missing = set(keys.missing_keys)
    for name in new:
        own = {key for key in module.state_dict() if key.startswith(f'{name}.')}
        missing -= own if own <= missing else set()
    named = {'missing': missing, 'unexpected': keys.unexpected_keys}
    return [f'{kind} {shorten(names)}' for kind, names in named.items() if names]
