"""Reading a file of ``torch.save`` without running anything that it holds."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .errors import CheckpointError


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
            read: Any = _NUMBERS[full]
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


def read_archive(path: Path, weights: bool) -> Any:
    """Content of a file of ``torch.save``.

    Args:
        path: The file.
        weights: Read what the tensors hold. Otherwise they are on the device ``meta``.

    Raises:
        CheckpointError: If it is no such file, is broken, or holds anything else than tensors and plain data.
    """
    with path.open('rb') as file:
        start = file.read(12)
    if not start.startswith(b'PK\x03\x04'):
        hint = ''
        if start.startswith(b'\x80'):  # a pickle
            hint = '; one saved with torch < 1.6 has to be loaded and saved again'
        found = 'a config' if path.suffix == '.py' else f'a file that starts with {start!r}'
        raise CheckpointError(f'{path}: expected a checkpoint, which torch.save writes, found {found}{hint}')
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
        raise CheckpointError(
            f'{path}: expected a checkpoint of torch.save, but cannot read it (cut short, or damaged?): {reason}'
        ) from error
