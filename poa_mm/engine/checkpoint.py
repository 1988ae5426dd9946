"""Reading checkpoints without running anything that they hold, and the supernet inside them."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

SUPERNET_KEY = 'poa'
FORMAT = 1
TEACHER = 'teacher.backbone.'


class CheckpointError(ValueError):
    """A file is not the checkpoint that it should be; says what was found and what was expected."""


# --- reading ---------------------------------------------------------------------------------


class _Inert:
    """Stands in for an object beside the tensors: takes what the file says of it and keeps nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


_REBUILD = ('_rebuild_tensor', '_rebuild_tensor_v2', '_rebuild_parameter')
_PLAIN = {
    'collections.OrderedDict': OrderedDict,
    'torch.Size': torch.Size,
    'torch.device': torch.device,
    'builtins.set': set,
    '__builtin__.set': set,
    'mmengine.config.config.ConfigDict': dict,
}
# What checkpoints of mmengine and of the authors' code hold beside weights and plain data.
_HARMLESS = {
    'mmengine.logging.history_buffer.HistoryBuffer',
    'mmengine.logging.message_hub.MessageHub',
    'numpy.dtype',
    'numpy.ndarray',
    'numpy.core.multiarray._reconstruct',
    'numpy.core.multiarray.scalar',
    'numpy._core.multiarray._reconstruct',
    'numpy._core.multiarray.scalar',
    '_codecs.encode',  # the bytes of a numpy array
    'builtins.getattr',  # how a HistoryBuffer names its methods; never the real one
    '__builtin__.getattr',
    'argparse.Namespace',
    'pathlib.PosixPath',
    'pathlib.WindowsPath',
}


class _Unpickler(pickle.Unpickler):
    """Knows tensors and plain data only.

    Whatever is returned here, a pickle may call and may set attributes on. So functions and stand-ins are
    new at every look-up, and the classes of ``_PLAIN`` are immutable.
    """

    def find_class(self, module: str, name: str) -> Any:
        full = f'{module}.{name}'
        if full in _PLAIN:
            return _PLAIN[full]
        if full in _HARMLESS:
            return type(name, (_Inert,), {})
        if module == 'torch' and isinstance(vars(torch).get(name), torch.dtype):
            return vars(torch)[name]
        if module == 'torch._utils' and name in _REBUILD:
            rebuild = getattr(torch._utils, name)
            return lambda *args: rebuild(*args)
        raise pickle.UnpicklingError(f'it holds {full}, which is neither a tensor nor plain data, and was not run')


class _TensorsOnly:
    """The ``pickle_module`` for ``torch.load``."""

    Unpickler = _Unpickler


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Contents of a checkpoint file, all tensors on the CPU; nothing in the file is executed.

    Objects that mmengine stores beside the weights, such as its logs, become empty stand-ins.

    Args:
        path: A file of ``torch.save`` (``.pth``, ``.pt``) or a ``.safetensors`` file, which becomes
            ``{'state_dict': tensors, 'meta': metadata}``.

    Raises:
        CheckpointError: If the file is missing or broken, is of another kind, or holds anything else than
            tensors and plain data.
    """
    path = Path(path)
    if not path.is_file():
        found = 'a folder' if path.is_dir() else 'nothing'
        raise CheckpointError(f'{path}: expected a checkpoint file, found {found}')
    if path.stat().st_size == 0:
        raise CheckpointError(f'{path}: expected a checkpoint, found an empty file')
    content = (_read_safetensors if path.suffix == '.safetensors' else _read_torch)(path)
    if not isinstance(content, dict):
        raise CheckpointError(f'{path}: expected a dict, found {type(content).__name__}')
    return content


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework='pt') as file:
            return {
                'state_dict': {name: file.get_tensor(name) for name in file.keys()},  # noqa: SIM118
                'meta': file.metadata() or {},
            }
    except SafetensorError as error:
        raise CheckpointError(f'{path}: expected a safetensors file, found a broken or other one ({error})') from error


def _read_torch(path: Path) -> Any:
    with path.open('rb') as file:
        start = file.read(12)
    if not start.startswith(b'PK\x03\x04'):
        raise CheckpointError(
            f'{path}: expected the zip archive that torch.save writes, found a file that starts with {start!r}; '
            'one saved with torch < 1.6 has to be loaded and saved again'
        )
    # A broken file can fail anywhere and with any exception.
    try:
        # torch.load would hand a TorchScript archive, which holds code, to torch.jit.load. This is the
        # reader it decides with; another one might be shown another list of contents.
        if 'constants.pkl' in torch._C.PyTorchFileReader(str(path)).get_all_records():
            raise pickle.UnpicklingError('it is a TorchScript archive')
        return torch.load(path, map_location='cpu', pickle_module=_TensorsOnly, weights_only=False)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f'{path}: expected a checkpoint of torch.save, but cannot read it: {reason}') from error


def file_sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open('rb') as file:
        for chunk in iter(lambda: file.read(1 << 20), b''):
            digest.update(chunk)
    return digest.hexdigest()


# --- the supernet ----------------------------------------------------------------------------


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
        CheckpointError: If the checkpoint is none of POA's, or does not fit the config.
    """
    checkpoint = read_checkpoint(path)
    description = checkpoint.get(SUPERNET_KEY)
    if description is None and backbone_cfg is None:
        raise CheckpointError(
            f'{path}: expected a POA checkpoint with an entry {SUPERNET_KEY!r}, found only {shorten(checkpoint)}'
        )
    if backbone_cfg is None:
        backbone = _build_described(description, path)
    else:
        backbone = MODELS.build(dict(backbone_cfg))
        if description is None:
            description = describe_supernet({'backbone': backbone_cfg})
        else:
            with torch.device('meta'):
                _check_same_network(_build_described(description, path), backbone, path)

    weights = checkpoint.get('state_dict')
    weights = weights if isinstance(weights, Mapping) else {}
    teacher = {str(key)[len(TEACHER) :]: value for key, value in weights.items() if str(key).startswith(TEACHER)}
    if not teacher:
        raise CheckpointError(f'{path}: expected weights {TEACHER}*, found only {shorten(weights)}')
    check_state(backbone.state_dict(), teacher, f'{path}: {TEACHER}*')
    backbone.load_state_dict(teacher)
    backbone.eval()  # mmpretrain's returns None
    return backbone, description


def _build_described(description: Any, path: str | os.PathLike) -> nn.Module:
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


def _check_same_network(described: nn.Module, given: nn.Module, path: str | os.PathLike) -> None:
    """Find what the shapes of the weights do not show, such as the number of heads."""
    expected, found = (
        network.extract(network.space.largest)[0] | {name: getattr(network, name) for name in network.elastic_options}
        for network in (described, given)
    )
    wrong = [
        f'{key} is {found.get(key)!r}, in the checkpoint {expected.get(key)!r}'
        for key in sorted(expected | found)
        if found.get(key) != expected.get(key)
    ]
    if wrong:
        raise CheckpointError(f'{path}: the given config is not that of the checkpoint: {"; ".join(wrong)}')


def check_state(expected: Mapping[str, Tensor], found: Mapping[str, Any], what: str) -> None:
    """Check that two state dicts have the same names and shapes.

    Raises:
        CheckpointError: If they have not; lists the differences after ``what``.
    """
    wrong = []
    if missing := expected.keys() - found.keys():
        wrong.append(f'missing {shorten(missing)}')
    if unexpected := found.keys() - expected.keys():
        wrong.append(f'unexpected {shorten(unexpected)}')
    for key in sorted(expected.keys() & found.keys()):
        shape = tuple(found[key].shape) if isinstance(found[key], Tensor) else type(found[key]).__name__
        if shape != tuple(expected[key].shape):
            wrong.append(f'{key} is {shape}, expected {tuple(expected[key].shape)}')
    if wrong:
        more = f'; and {len(wrong) - 8} more' if len(wrong) > 8 else ''
        raise CheckpointError(f'{what} does not fit the network: {"; ".join(wrong[:8])}{more}')


def shorten(names: Iterable[Any], limit: int = 6) -> str:
    """The first names in alphabetical order, and how many more there are."""
    names = sorted(map(str, names))
    text = ', '.join(names[:limit]) or 'nothing'
    return text if len(names) <= limit else f'{text} and {len(names) - limit} more'
