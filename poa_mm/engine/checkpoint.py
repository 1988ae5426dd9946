"""Reading checkpoints without running anything that they hold, and the supernet inside them."""

from __future__ import annotations

import copy
import hashlib
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

SUPERNET_KEY = 'poa'
FORMAT = 1
TEACHER = 'teacher.backbone.'
SHARDED = 'checkpoint.pth'  # in the folder of a sharded checkpoint: all but the tensors


class CheckpointError(ValueError):
    """A file is not the checkpoint that it should be; says what was found and what was expected."""


# --- reading ---------------------------------------------------------------------------------


class _Inert:
    """Stands in for an object beside the tensors: takes what the file says of it and keeps nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def is_inert(value: Any) -> bool:
    """Whether ``value`` is a stand-in for an object that was not read."""
    return isinstance(value, _Inert)


class _DType(_Inert):
    """A ``numpy.dtype``: the name of it if it is one of plain numbers in this machine's byte order."""

    code: str | None = None

    def __init__(self, code: Any = None, *args: Any):
        self.code = code if code in ('b1', *(f'{kind}{size}' for kind in 'fiu' for size in (1, 2, 4, 8))) else None

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ('<', '|'):
            self.code = None

    def read(self, data: Any) -> np.ndarray | None:
        """The numbers in some bytes."""
        return np.frombuffer(data, self.code) if self.code and isinstance(data, bytes) else None


class _Array(_Inert):
    """A ``numpy.ndarray``: its numbers, in the order of the memory."""

    numbers: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, _, dtype, _, data = state
        self.numbers = dtype.read(data) if isinstance(dtype, _DType) else None


def _number(dtype: Any, data: Any = None) -> Any:
    """A number of numpy, as one of Python."""
    numbers = dtype.read(data) if isinstance(dtype, _DType) else None
    return _Inert() if numbers is None or numbers.size != 1 else numbers.item()


def _encode(text: str, encoding: str) -> bytes:
    """The bytes of a numpy array, in pickles as old as torch's."""
    if encoding != 'latin1':
        raise pickle.UnpicklingError(f'it holds text encoded as {encoding!r}')
    return text.encode(encoding)


class History(_Inert):
    """A ``HistoryBuffer`` of mmengine, which logs are made of: the numbers in it and nothing else."""

    def __setstate__(self, state: Any) -> None:
        self.values, self.counts = (
            array.numbers if isinstance(array := state.get(name), _Array) else None
            for name in ('_log_history', '_count_history')
        )
        self.max_length = state.get('max_length')

    def is_complete(self) -> bool:
        """Whether both rows of numbers could be read."""
        values, counts = getattr(self, 'values', None), getattr(self, 'counts', None)
        if values is None or counts is None or type(self.max_length) is not int:
            return False
        return len(values) == len(counts) <= self.max_length


_REBUILD = ('_rebuild_tensor', '_rebuild_tensor_v2', '_rebuild_parameter')
_PLAIN = {
    'collections.OrderedDict': OrderedDict,
    'torch.Size': torch.Size,
    'torch.device': torch.device,
    'builtins.set': set,
    '__builtin__.set': set,
    'mmengine.config.config.ConfigDict': dict,
}
# Numbers of numpy and logs of mmengine. numpy's own classes can be made to read memory that is not theirs.
_NUMBERS = {
    'mmengine.logging.history_buffer.HistoryBuffer': History,
    'numpy.dtype': _DType,
    '_codecs.encode': _encode,
    **{f'numpy.{core}.multiarray._reconstruct': _Array for core in ('core', '_core')},
    **{f'numpy.{core}.multiarray.scalar': _number for core in ('core', '_core')},
}
# What checkpoints of mmengine and of the authors' code hold beside that.
_HARMLESS = {
    'mmengine.logging.message_hub.MessageHub',
    'numpy.ndarray',
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
        if full in _NUMBERS:
            read = _NUMBERS[full]
            return type(name, (read,), {}) if isinstance(read, type) else lambda *args: read(*args)
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


def read_checkpoint(path: str | os.PathLike, weights: bool = True) -> dict[str, Any]:
    """Contents of a checkpoint file, all tensors on the CPU; nothing in the file is executed.

    Objects that mmengine stores beside the weights become stand-ins, which hold nothing except, for its logs, the
    numbers (:class:`History`). Single numbers of numpy become Python's.

    Args:
        path: A file of ``torch.save`` (``.pth``, ``.pt``), a ``.safetensors`` file, which becomes
            ``{'state_dict': tensors, 'meta': metadata}``, or the folder of a sharded checkpoint
            (:func:`~poa_mm.engine.sharded_checkpoint.read_sharded`).
        weights: Read what the tensors hold, and compare a sealed file with its SHA-256. Otherwise the tensors of
            a file of ``torch.save`` are on the device ``meta``, which takes milliseconds. Default: ``True``.

    Raises:
        CheckpointError: If the file is missing or broken, is of another kind, or holds anything else than
            tensors and plain data.
    """
    path = Path(path)
    if is_sharded(path):
        from .sharded_checkpoint import read_sharded  # which reads the file in the folder by this function

        return read_sharded(path, weights)
    _check_is_file(path)
    if weights and _sealed_with(path) is not None:
        check_integrity(path)
    content = _read_safetensors(path) if path.suffix == '.safetensors' else _read_torch(path, weights)
    if not isinstance(content, dict):
        raise CheckpointError(f'{path}: expected a dict, found {type(content).__name__}')
    return content


def is_sharded(path: str | os.PathLike) -> bool:
    """Whether ``path`` is the folder of a sharded checkpoint."""
    return Path(path, SHARDED).is_file()


def _check_is_file(path: Path) -> None:
    if not path.is_file():
        found = 'a folder' if path.is_dir() else 'nothing'
        raise CheckpointError(f'{path}: expected a checkpoint file, found {found}')
    if path.stat().st_size == 0:
        raise CheckpointError(f'{path}: expected a checkpoint, found an empty file')


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


def _read_torch(path: Path, weights: bool) -> Any:
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
        device = 'cpu' if weights else 'meta'
        return torch.load(path, map_location=device, pickle_module=_TensorsOnly, weights_only=False)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f'{path}: expected a checkpoint of torch.save, but cannot read it: {reason}') from error


def file_sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file, in hexadecimal; of a sharded checkpoint, that of the file in it that holds all others'."""
    path = Path(path, SHARDED) if is_sharded(path) else path
    return _sha256_of(path, Path(path).stat().st_size)


def _sha256_of(path: str | os.PathLike, size: int) -> str:
    """SHA-256 of the first ``size`` bytes of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open('rb') as file:
        while size > 0 and (chunk := file.read(min(size, 1 << 20))):
            digest.update(chunk)
            size -= len(chunk)
    return digest.hexdigest()


# --- integrity -------------------------------------------------------------------------------

# A zip archive may end with a comment. Ours is this and the SHA-256, in hexadecimal, of all that comes before
# the latter: in the file itself, it is never out of step with it, and no other reader minds.
SEAL = b'poa_mm sha256 '
DIGEST = 64
END_OF_ARCHIVE = b'PK\x05\x06'  # 18 bytes follow if there is no comment, the last two of them its length


def sealed(data: bytes) -> list[bytes | memoryview]:
    """An archive of ``torch.save`` with its SHA-256, as consecutive chunks; other data as it is.

    Args:
        data: Content of the file; it is not copied.
    """
    if data[-22:-18] != END_OF_ARCHIVE or data[-2:] != bytes(2):
        return [data]
    chunks = [memoryview(data)[:-2], (len(SEAL) + DIGEST).to_bytes(2, 'little') + SEAL]
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return [*chunks, digest.hexdigest().encode()]


def _sealed_with(path: Path) -> str | None:
    """The SHA-256 that a file says it has without it; of a file without seal, nothing."""
    with path.open('rb') as file:
        file.seek(max(0, path.stat().st_size - len(SEAL) - DIGEST))
        seal = file.read()
    return seal[len(SEAL) :].decode('latin1') if seal.startswith(SEAL) else None


def check_integrity(path: str | os.PathLike) -> None:
    """Check that a file of ``torch.save`` holds what was written, bit by bit.

    A sealed one is compared with its SHA-256, any other with the CRC-32 of each of its tensors, and each file of a
    sharded checkpoint with its SHA-256.

    Raises:
        CheckpointError: If it does not, or is no such file.
    """
    path = Path(path)
    if is_sharded(path):
        check_integrity(path / SHARDED)
        for name, digest in read_checkpoint(path / SHARDED).get('files', {}).items():
            if not (path / name).is_file() or file_sha256(path / name) != digest:
                raise CheckpointError(f'{path / name}: is damaged: its SHA-256 is not the one it was written with')
        return
    _check_is_file(path)
    if (seal := _sealed_with(path)) is not None:
        if _sha256_of(path, path.stat().st_size - DIGEST) != seal:
            raise CheckpointError(f'{path}: is damaged: its SHA-256 is not the one it was written with')
        return
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    except Exception as error:  # of a broken archive, any
        raise CheckpointError(f'{path}: expected a checkpoint of torch.save, but cannot read it: {error}') from error
    if damaged is not None:
        raise CheckpointError(f'{path}: is damaged: the CRC-32 of {damaged} is not the one it was written with')


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


def check_same_supernet(description: Any, backbone: nn.Module, what: str | os.PathLike) -> None:
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
    _check_same_network(described, backbone, what)


def _check_same_network(described: nn.Module, given: nn.Module, path: str | os.PathLike) -> None:
    """Find what the shapes of the weights do not show, such as the number of heads."""
    expected, found = (
        network.extract(network.space.largest)[0] | {name: getattr(network, name) for name in network.elastic_options}
        for network in (described, _without_weights(given))
    )
    wrong = [
        f'{key} is {found.get(key)!r}, in the checkpoint {expected.get(key)!r}'
        for key in sorted(expected | found)
        if found.get(key) != expected.get(key)
    ]
    if wrong:
        raise CheckpointError(f'{path}: the given config is not that of the checkpoint: {"; ".join(wrong)}')


def _without_weights(network: nn.Module) -> nn.Module:
    """A copy with parameters on the device ``meta``, whatever they are in ``network``, shards for instance."""
    params = {
        id(param): nn.Parameter(torch.empty(param.shape, device='meta'), param.requires_grad)
        for param in network.parameters()
    }
    return copy.deepcopy(network, params)


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
