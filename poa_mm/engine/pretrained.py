"""Weights that must fit the network they are loaded into: every key, and what keys do not show."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from mmengine.model import PretrainedInit
from torch import nn

from poa_mm.checkpoint import (
    SUPERNET_KEY,
    CheckpointError,
    Resizing,
    check_finite,
    check_same_network,
    compare,
    compare_normalisation,
    description_of,
    read_checkpoint,
    shorten,
)
from poa_mm.checkpoint.geometry import Description, Difference, grid_of, window_of
from poa_mm.checkpoint.resizing import BIASES

TORCH_HEADLINE = 'Error(s) in loading state_dict'


def load_pretrained(
    model: nn.Module, new: Collection[str] = (), resize: bool = False, differ: Collection[str] = ()
) -> None:
    """Load strictly what ``init_cfg=dict(type='Pretrained', checkpoint=FILE)`` names anywhere in ``model``.

    A check before mmengine loads the same file, whatever of it fits. URLs are left to mmengine. Files become
    ``poa://FILE`` in the modules' ``init_cfg``, so that mmengine executes nothing in them either.

    The normalisation of images by ``model.data_preprocessor`` is compared as well, if the file says what it was.

    Args:
        model: Model of a run, before its weights are initialised.
        new: As of :func:`load_weights`, as are the others.

    Raises:
        CheckpointError: If a file is missing, cannot be read or does not fit its module; names the module, the
            file, what differs and, as far as the file says so, the subnet it holds.
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
            description, resizing = _load_file(module, path, cfg.get('prefix'), name, new, resize, differ)
            if description is not None and getattr(model, 'data_preprocessor', None) is not None:
                _check_normalisation(model.data_preprocessor, description, path, differ)
            cfg['checkpoint'] = resizing.name(path)


def _pretrained(init_cfg: Any) -> Iterator[Mapping[str, Any]]:
    """Those of one or several initialisation configs that name a checkpoint."""
    for cfg in init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]:
        if isinstance(cfg, Mapping) and cfg.get('type') in ('Pretrained', PretrainedInit):
            yield cfg


def _check_normalisation(
    preprocessor: nn.Module, description: Description, path: Path, differ: Collection[str]
) -> None:
    """Compare how images are normalised; say where it cannot be seen."""
    if description.normalisation is None:
        return
    found, normalises = compare_normalisation(preprocessor, description.normalisation)
    _refuse(found, differ, f'{path}: images are not normalised as in the pre-training')
    if not normalises:
        stored = ', '.join(f'{key} {value}' for key, value in description.normalisation.items())
        _say(
            f'{path}: the data preprocessor does not normalise images, as the pre-training did ({stored}); '
            'the pipeline has to',
            logging.WARNING,
        )


def load_weights(
    module: nn.Module,
    path: str | os.PathLike,
    prefix: str | None = None,
    name: str = '',
    new: Collection[str] = (),
    resize: bool = False,
    differ: Collection[str] = (),
) -> None:
    """Load a checkpoint file into a module, of which every key must fit. Nothing in the file is executed.

    An extracted file says what network its weights are from. That is compared with ``module``: heads, windows, strides,
    groups and so on, which leave no trace in names and shapes. Of other files, one line says that it was not.

    Args:
        module: Network of any kind; its hooks adapt the weights as they do for mmengine.
        path: File as :func:`~poa_mm.checkpoint.read_checkpoint` takes it, with an entry ``state_dict``
            or weights only.
        prefix: Take the keys below this prefix only, as mmengine's ``PretrainedInit`` does. Default: all.
        name: What errors call the module. Default: the name of its class only.
        new: Names of submodules that pre-training may not have had: the file has all weights of such a one, or
            none, which leaves those it has. Names of submodules that there are not do nothing. Default: none.
        resize: Resize position embeddings where only the grid of patches differs from what the file says, and
            relative position biases where only the window does, and say so. Otherwise that is an error. Default: False.
        differ: Settings that may differ from what the file says, by their last name, such as ``'stride'``.
            Default: none.

    Raises:
        CheckpointError: If the file is missing or broken, holds NaN or infinity, is of another network, or a key is
            missing, unexpected or of another shape.
    """
    _load_file(module, Path(path), prefix, name, new, resize, differ)


def _load_file(
    module: nn.Module,
    path: Path,
    prefix: str | None,
    name: str,
    new: Collection[str],
    resize: bool,
    differ: Collection[str],
) -> tuple[Description | None, Resizing]:
    """As :func:`load_weights`; what the file says of its network, and what was resized."""
    checkpoint = read_checkpoint(path)
    weights = _weights(checkpoint, path, prefix)
    check_finite(weights, str(path))
    what = f'{name} ({type(module).__name__})' if name else type(module).__name__
    meta = checkpoint.get('meta')
    subnet = meta.get('subnet') if isinstance(meta, Mapping) else None
    holds = f'; the file holds subnet {subnet}' if subnet else ''

    description = description_of(meta, path)
    if description is not None:
        wrong, resizing = compare(module, description)
        _refuse(wrong, differ, f'{path} is not of the network that {what} is', holds)
        if resizing != Resizing() and not resize:
            raise CheckpointError(
                f'{path} is not of the network that {what} is: {_sizes(description.network)} in the file, '
                f'{_sizes(module)} here{holds}; tools/train.py and load_pretrained(.., resize=True) resize the weights'
            )
    else:
        resizing = Resizing(window=_other_window(module, weights))
        _say_unknown(checkpoint, module, path)
    if resizing != Resizing():
        _say(f'{path}: resized {resizing.describe()}', logging.WARNING)
        grid, mode = (description.grid, description.mode) if description else (None, 'bicubic')
        weights = resizing.apply(weights, grid, mode)

    try:
        wrong = _load(module, weights, new)
    except CheckpointError as error:
        raise CheckpointError(f'{path}: {error}{holds}') from error.__cause__
    if wrong:
        raise CheckpointError(f'{path} does not fit {what}: {"; ".join(wrong)}{holds}')
    return description, resizing


def _weights(checkpoint: Mapping[str, Any], path: Path, prefix: str | None) -> dict[str, Any]:
    weights = checkpoint.get('state_dict', checkpoint)
    if not isinstance(weights, Mapping):
        raise CheckpointError(f"{path}: expected a dict as 'state_dict', found {type(weights).__name__}")
    if prefix is None:
        return {re.sub(r'^module\.', '', str(key)): value for key, value in weights.items()}
    start = prefix if prefix.endswith('.') else f'{prefix}.'
    found = {str(key)[len(start) :]: value for key, value in weights.items() if str(key).startswith(start)}
    if not found:
        raise CheckpointError(f'{path}: expected weights {start}*, found only {shorten(weights)}')
    return found


def _refuse(found: Iterable[Difference], differ: Collection[str], headline: str, holds: str = '') -> None:
    """Raise an error for the differences that are not allowed.

    Raises:
        CheckpointError: If there are any.
    """
    wrong = [str(difference) for difference in found if not {difference.key, 'all'} & set(differ)]
    if wrong:
        more = f'; and {len(wrong) - 6} more' if len(wrong) > 6 else ''
        raise CheckpointError(f'{headline}: {"; ".join(wrong[:6])}{more}{holds}')


def _sizes(network: nn.Module) -> str:
    grid, window = grid_of(network), window_of(network)
    return f'a grid of {grid[0]} x {grid[1]} patches' if grid else f'windows of {window}'


def _other_window(module: nn.Module, weights: Mapping[str, Any]) -> int | None:
    """The window of a network if the biases in a file that does not say so are of another."""
    window = window_of(module)
    sizes = {value.shape[0] for key, value in weights.items() if key.endswith(BIASES) and hasattr(value, 'shape')}
    return window if window and sizes and sizes != {(2 * window - 1) ** 2} else None


def _say_unknown(checkpoint: Mapping[str, Any], module: nn.Module, path: Path) -> None:
    """Compare what a checkpoint of a supernet describes, or say in one line what cannot be compared."""
    if SUPERNET_KEY in checkpoint and hasattr(module, 'extract'):
        check_same_network(checkpoint[SUPERNET_KEY], module, path)
        return
    _say(
        f'{path} does not say what network its weights are from: heads, windows, strides, norms and the '
        'normalisation of images could not be compared',
        logging.INFO,
    )


def _say(message: str, level: int) -> None:
    print_log(message, logger='current', level=level)


def _load(module: nn.Module, weights: Mapping[str, Any], new: Collection[str]) -> list[str]:
    """Load and say what does not fit.

    Raises:
        CheckpointError: If the module itself fails at adapting the weights.
    """
    try:
        keys = module.load_state_dict(weights, strict=False)  # which still refuses other shapes
    except Exception as error:  # whatever the hooks of the module raise
        lines = [line.strip() for line in str(error).splitlines()] or ['no reason given']
        if not (isinstance(error, RuntimeError) and lines[0].startswith(TORCH_HEADLINE)):
            raise CheckpointError(
                f'{type(module).__name__} cannot take the weights: {type(error).__name__}: {" ".join(lines)}'
            ) from error
        lines = lines[1:]  # torch's headline says no more than that there are errors
        return lines[:3] + ([f'and {len(lines) - 3} more'] if len(lines) > 3 else [])
    missing = set(keys.missing_keys)
    for name in new:
        own = {key for key in module.state_dict() if key.startswith(f'{name}.')}
        missing -= own if own <= missing else set()
    named = {'missing': missing, 'unexpected': keys.unexpected_keys}
    return [f'{kind} {shorten(names)}' for kind, names in named.items() if names]
