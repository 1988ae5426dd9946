"""The network that weights are from, compared with the one that they go into.

Names and shapes of weights do not show how many heads there are, how windows are shifted, where strides lie or how many
groups a norm has. So extraction writes the config of the network into the file, and loading compares.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from numbers import Number
from typing import Any, NamedTuple

import torch
from mmengine.registry import MODELS
from torch import nn

from .errors import CheckpointError
from .resizing import BIASES, EMBEDDING, Resizing

BACKBONE, PREPROCESSOR = 'backbone', 'data_preprocessor'  # entries of the metadata, each as JSON
STOCK = ('VisionTransformer', 'SwinTransformer', 'ResNet', 'BottleneckResNet')

# Attributes that may differ: what comes out, what is trained and how, and sizes that are compared as grid or window.
FREE = {
    *('training', 'init_cfg', 'frozen_stages', 'with_cp', 'norm_eval', 'out_indices', 'out_type'),
    *('drop_rate', 'drop_path_rate', 'drop_prob', 'p', 'attn_drop', 'proj_drop', 'attn_drop_rate', 'inplace'),
    *('img_size', 'patch_resolution', 'init_input_size', 'init_out_size', 'input_size', 'zero_init_residual'),
}
NO_LAYERS = ('Identity', 'Dropout', 'DropPath')  # which do nothing when a network is used
WINDOW, SHIFT = 'window_size', 'shift_size'


class Description(NamedTuple):
    """What a file says of its weights.

    Args:
        network: The network that they are from, without weights.
        normalisation: ``mean``, ``std`` and ``to_rgb`` of its images. None if the file does not say.
    """

    network: nn.Module
    normalisation: Mapping[str, Any] | None

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of its position embeddings, where it has some."""
        return grid_of(self.network)

    @property
    def mode(self) -> str:
        """How it resizes them."""
        return getattr(self.network, 'interpolate_mode', 'bicubic')


def metadata_of(backbone: Mapping[str, Any], normalisation: Mapping[str, Any]) -> dict[str, str]:
    """What extraction writes into a file of weights: text by name, which both formats can hold.

    Args:
        backbone: Config of the network.
        normalisation: ``mean``, ``std`` and ``to_rgb``.
    """
    return {BACKBONE: json.dumps(dict(backbone)), PREPROCESSOR: json.dumps(dict(normalisation))}


def description_of(meta: Any, what: Any) -> Description | None:
    """The description in the metadata of a file; None if there is none.

    Args:
        meta: The metadata.
        what: What errors call the file.

    Raises:
        CheckpointError: If it is not the description of a network that extraction gives.
    """
    if not isinstance(meta, Mapping) or not isinstance(meta.get(BACKBONE), str):
        return None
    try:
        config = json.loads(meta[BACKBONE])
        normalisation = json.loads(meta[PREPROCESSOR]) if isinstance(meta.get(PREPROCESSOR), str) else None
        # A registry imports and calls whatever a dotted name points at. A file may name these only.
        kind = config.pop('type')
        nested = {entry.get('type') for entry in config.values() if isinstance(entry, dict)} - {None}
        if kind not in STOCK or not nested <= {'LN', 'GN'}:
            raise ValueError(f'type {kind!r} with {sorted(map(str, nested))}')
        if normalisation is not None and not isinstance(normalisation, dict):
            raise ValueError(f'normalisation {normalisation!r}')
        return Description(_without_weights(kind, config), normalisation)
    except Exception as error:  # whatever the class raises for what somebody has written
        raise CheckpointError(
            f'{what}: cannot build the network that it says it holds the weights of: {error}'
        ) from error


def _without_weights(kind: str, config: Mapping[str, Any]) -> nn.Module:
    config = {**config, 'type': kind if kind == 'BottleneckResNet' else f'mmpretrain.{kind}', 'init_cfg': None}
    try:
        with torch.device('meta'):
            return MODELS.build(dict(config))
    except (RuntimeError, NotImplementedError):  # Swin reads its drop path rates from a tensor
        return MODELS.build(dict(config))


class Difference(NamedTuple):
    """One setting that two networks do not share.

    Args:
        name: Of the setting, such as ``layers.*.attn.num_heads``.
        given: Its value in the network that weights go into.
        described: Its value in the network that they are from.
    """

    name: str
    given: Any
    described: Any

    @property
    def key(self) -> str:
        """The last part of the name."""
        return self.name.rpartition('.')[2]

    def __str__(self) -> str:
        return f'{self.name} is {self.given!r}, in the file {self.described!r}'


def compare(given: nn.Module, description: Description) -> tuple[list[Difference], Resizing]:
    """What of a network is not as in the one that weights are from.

    Args:
        given: The network that they go into.
        description: Of the other.

    Returns:
        The settings that differ, and what would have to be resized.
    """
    theirs = dict(description.network.named_modules())
    found: dict[Difference, None] = {}
    for name, module in given.named_modules():
        if name in theirs:
            place = re.sub(r'(?<![^.])\d+(?![^.])', '*', name)  # layers.*, but ln1
            for key, mine, other in _differing(module, theirs[name], root=not name):
                found[Difference(f'{place}.{key}' if place else key, mine, other)] = None
    grid, window = grid_of(given), window_of(given)
    grid = grid if grid and description.grid and grid != description.grid else None
    window = window if window and window != window_of(description.network) else None
    rest = [difference for difference in found if not (window and _follows_window(difference))]
    return rest, Resizing(grid, window)


def _differing(mine: nn.Module, other: nn.Module, root: bool) -> Iterable[tuple[str, Any, Any]]:
    kinds = [type(module).__name__ for module in (mine, other)]
    if kinds[0] != kinds[1] and not root and not set(kinds) <= set(NO_LAYERS) and _is_torch(mine) and _is_torch(other):
        yield 'type', kinds[0], kinds[1]
    ours, theirs = _settings(mine), _settings(other)
    for key in ours:
        if key in theirs and ours[key] != theirs[key]:
            yield key, ours[key], theirs[key]


def _is_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith('torch.nn')


def _settings(module: nn.Module) -> dict[str, Any]:
    """Attributes of a module that are numbers, text or rows of such."""
    settings = {}
    for name, value in vars(module).items():
        if name.startswith('_') or name in FREE:
            continue
        row = value if isinstance(value, (list, tuple)) else (value,)
        if row and all(item is None or isinstance(item, (Number, str)) for item in row):
            # 16 and (16, 16) are the same.
            settings[name] = row[0] if len(set(row)) == 1 else tuple(row)
    return settings


def _follows_window(difference: Difference) -> bool:
    """Whether a setting differs because windows do, not because other ones are shifted."""
    key = difference.key
    return key == WINDOW or (key == SHIFT and bool(difference.given) == bool(difference.described))


def grid_of(network: nn.Module) -> tuple[int, int] | None:
    """Rows and columns of the patches that a network has position embeddings for."""
    grid: Any = getattr(network, 'patch_resolution', None)
    if isinstance(getattr(network, EMBEDDING, None), nn.Parameter) and grid is not None:
        rows, columns = grid
        return rows, columns
    return None


def window_of(network: nn.Module) -> int | None:
    """Rows, and columns, of the windows of a network that has relative position biases."""
    sizes = {param.shape[0] for name, param in network.named_parameters() if name.endswith(BIASES)}
    return (int(max(sizes) ** 0.5) + 1) // 2 if len(sizes) == 1 else None


def compare_normalisation(preprocessor: Any, stored: Mapping[str, Any]) -> tuple[list[Difference], bool]:
    """What of a model's normalisation is not as in the pre-training.

    Args:
        preprocessor: The model's data preprocessor.
        stored: ``mean``, ``std`` and ``to_rgb`` of the pre-training.

    Returns:
        The settings that differ, and whether the model normalises at all. One that does not may leave it to
        the pipeline, which cannot be seen here.
    """
    if not getattr(preprocessor, '_enable_normalize', False):
        return [], stored.get('mean') is None
    found = []
    for key in ('mean', 'std'):
        mine = [round(value, 4) for value in getattr(preprocessor, key).flatten().tolist()]
        theirs = stored.get(key)
        if theirs is None or not _close(mine, list(theirs)):
            found.append(Difference(f'{PREPROCESSOR}.{key}', mine, theirs))
    flips = any(getattr(preprocessor, name, False) for name in ('to_rgb', '_channel_conversion', 'channel_conversion'))
    if preprocessor.mean.numel() > 1 and flips != bool(stored.get('to_rgb')):
        found.append(Difference(f'{PREPROCESSOR}: channels turned from BGR to RGB', flips, bool(stored.get('to_rgb'))))
    return found, True


def _close(mine: list[float], theirs: list[float]) -> bool:
    size = max(len(mine), len(theirs))
    mine, theirs = (row * size if len(row) == 1 else row for row in (mine, theirs))
    return len(mine) == len(theirs) and all(abs(a - b) <= 1e-3 * max(1.0, abs(b)) for a, b in zip(mine, theirs))
