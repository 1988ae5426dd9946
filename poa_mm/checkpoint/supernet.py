"""The supernet in a checkpoint: what it says of its network, and that network with its weights."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import nn

from .errors import CheckpointError, check_finite, check_state, shorten
from .reading import read_checkpoint

SUPERNET_KEY = 'poa'
FORMAT = 1
TEACHER = 'teacher.backbone.'
ElasticBackbone = Any  # one of poa_mm.models, which are above this package


def describe_supernet(model: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of its network, as plain data: its entry ``poa`` without the deck.

    Args:
        model: Config of a :class:`~poa_mm.models.POA`, an mmengine config or a dict.

    Returns:
        ``format``, ``backbone``, ``head`` and ``data_preprocessor``.

    Raises:
        TypeError: If the config holds anything but dicts, lists, tuples, text and numbers; names it.
    """
    parts = {name: model.get(name) or {} for name in ('backbone', 'head', 'data_preprocessor')}
    return {'format': FORMAT, **_plain(parts, 'model')}


def _plain(value: Any, where: str) -> Any:
    """Deep copy of ``value`` in built-in types; ``where`` is its name in the config."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f'{where}.{key}') for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_plain(item, f'{where}[{index}]') for index, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, type):  # mmengine's configs in pure Python hold classes
        return value.__name__
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if value is None:
        return None
    raise TypeError(f'{where} is {value!r}; a description holds dicts, lists, text and numbers only')


def load_teacher(
    path: str | os.PathLike, backbone_cfg: Mapping[str, Any] | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """The teacher's backbone, the network that subnets are cut from, in evaluation mode.

    Args:
        path: Checkpoint of a pre-training run or of ``import_public_checkpoint``.
        backbone_cfg: Config of the elastic backbone. Default: the one in the checkpoint's description.

    Returns:
        The backbone, and the checkpoint's description as :func:`describe_supernet` makes it; without one
        in the checkpoint, that of ``backbone_cfg``.

    Raises:
        CheckpointError: If the checkpoint is none of POA's, does not fit the config, or holds NaN or infinity.
    """
    checkpoint = read_checkpoint(path)
    description: Any = checkpoint.get(SUPERNET_KEY)
    if description is None and backbone_cfg is None:
        raise CheckpointError(_not_a_supernet(checkpoint, path))
    if backbone_cfg is None:
        backbone = _build_described(description, path)
    else:
        backbone = MODELS.build(dict(backbone_cfg))
        if description is None:
            description = describe_supernet({'backbone': backbone_cfg})
        else:
            with torch.device('meta'):
                _compare(_build_described(description, path), backbone, path)

    weights = checkpoint.get('state_dict')
    weights = weights if isinstance(weights, Mapping) else {}
    teacher = {str(key)[len(TEACHER) :]: value for key, value in weights.items() if str(key).startswith(TEACHER)}
    if not teacher:
        raise CheckpointError(f'{path}: expected weights {TEACHER}*, found only {shorten(weights)}')
    check_state(backbone.state_dict(), teacher, f'{path}: {TEACHER}*')
    check_finite(teacher, f'{path}: {TEACHER}*')
    backbone.load_state_dict(teacher)
    backbone.eval()  # mmpretrain's returns None
    return backbone, description


def _not_a_supernet(checkpoint: Mapping[str, Any], path: str | os.PathLike) -> str:
    meta = checkpoint.get('meta')
    if isinstance(meta, Mapping) and {'subnet', 'source'} <= set(meta):
        return (
            f'{path}: holds the weights of one network, subnet {meta["subnet"]} of {meta["source"]}; expected the '
            'checkpoint of a pre-training run'
        )
    return (
        f'{path}: expected the checkpoint of a pre-training run, which has an entry {SUPERNET_KEY!r}, found only '
        f'{shorten(checkpoint)}; tools/import_public_checkpoint.py makes one of a checkpoint of the authors'
    )


def _build_described(description: Any, path: str | os.PathLike) -> ElasticBackbone:
    """The backbone that a checkpoint describes."""
    config = description.get('backbone') if isinstance(description, Mapping) else None
    if not isinstance(config, Mapping) or description.get('format') != FORMAT:
        raise CheckpointError(
            f"{path}: expected a description of format {FORMAT} with a 'backbone', found {str(description)[:200]}"
        )
    config = {key: value for key, value in config.items() if key != 'init_cfg'}  # the weights are loaded
    # A registry imports and calls whatever a dotted name points at. A file may name what is registered only.
    unknown = [kind for kind in _types(config) if not isinstance(kind, str) or kind not in MODELS.module_dict]
    if unknown or not hasattr(MODELS.module_dict.get(config.get('type')), 'extract'):
        raise CheckpointError(
            f'{path}: expected the description of an elastic backbone of poa_mm, found type '
            f'{", ".join(map(repr, unknown or [config.get("type")]))}'
        )
    try:
        return MODELS.build(config)
    except Exception as error:  # whatever the class raises for what an unknown version may have written
        raise CheckpointError(f'{path}: cannot build the backbone it describes: {error}') from error


def _types(config: Any) -> Iterable[Any]:
    """Every value of a key ``type`` in a nested config."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            if key == 'type':
                yield value
            else:
                yield from _types(value)
    elif isinstance(config, (list, tuple)):
        for value in config:
            yield from _types(value)


def check_same_supernet(description: Any, backbone: ElasticBackbone, what: str | os.PathLike) -> None:
    """Check that a checkpoint's description is that of a given elastic backbone, the space of its subnets included.

    Args:
        description: The checkpoint's entry ``poa``.
        backbone: The elastic backbone.
        what: What errors call the checkpoint, such as its path.

    Raises:
        CheckpointError: If it is not; lists the differences.
    """
    with torch.device('meta'):
        described = _build_described(description, what)
    if type(described) is not type(backbone):
        raise CheckpointError(
            f'{what}: the given config is not that of the checkpoint: the backbone is '
            f'{type(backbone).__name__}, in the checkpoint {type(described).__name__}'
        )
    if list(described.space) != list(backbone.space):
        raise CheckpointError(
            f'{what}: the given config is not that of the checkpoint: its space is '
            f'{backbone.space.describe()}, in the checkpoint {described.space.describe()}'
        )
    _compare(described, backbone, what)


def check_same_network(description: Any, backbone: ElasticBackbone, what: str | os.PathLike) -> None:
    """As :func:`check_same_supernet`, but of the network at full size: its subnets may be others."""
    with torch.device('meta'):
        described = _build_described(description, what)
    if type(described) is type(backbone):  # otherwise the names of the weights differ
        _compare(described, backbone, what)


def _compare(described: ElasticBackbone, given: ElasticBackbone, path: str | os.PathLike) -> None:
    """Find what the shapes of the weights do not show, such as the number of heads."""
    expected, found = (
        network.extract(network.space.largest)[0] | {name: getattr(network, name) for name in network.elastic_options}
        for network in (described, _without_weights(given))
    )
    wrong = [
        f'{key} is {found.get(key)!r}, in the checkpoint {expected.get(key)!r}'
        for key in sorted((expected | found).keys() - set(described.training_options))
        if found.get(key) != expected.get(key)
    ]
    if wrong:
        raise CheckpointError(f'{path}: the given config is not that of the checkpoint: {"; ".join(wrong)}')


def _without_weights(network: ElasticBackbone) -> ElasticBackbone:
    """A copy with parameters on the device ``meta``, whatever they are in ``network``, shards for instance."""
    params = {
        id(param): nn.Parameter(torch.empty(param.shape, device='meta'), param.requires_grad)
        for param in network.parameters()
    }
    return copy.deepcopy(network, params)
