"""Arrays in one file that all processes of a machine map: lists of millions of images that cost a rank no memory."""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import current_process, get_context
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import print_log

MAGIC = b'poa_mm-index-v1\n'
ALIGNMENT = 64  # bytes
CACHE = 'POA_MM_INDEX'  # environment variable: where index files go
DEFAULT_CACHE = 'work_dirs/image_index'


class Index:
    """Arrays and what is to be known about them. Pickled, a mapped one is its path.

    Args:
        meta: Plain data; ``digest`` in it tells one list of images from another.
        arrays: By name.
        path: File that they are mapped from. Default: None, they are in memory.
    """

    def __init__(self, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray], path: Path | None = None):
        self.meta = meta
        self.arrays = arrays
        self.path = path

    def __reduce__(self):
        if self.path is None:
            return Index, (self.meta, self.arrays)
        return _read_same, (self.path, self.meta['digest'])

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def text(self, name: str, index: int) -> str:
        """Entry ``index`` of the texts that :func:`pack_texts` has packed under ``name``."""
        ends = self.arrays[f'{name}_ends']
        start = int(ends[index - 1]) if index else 0
        return os.fsdecode(self.arrays[name][start : int(ends[index])].tobytes())


def pack_texts(name: str, texts: Sequence[bytes]) -> dict[str, np.ndarray]:
    """Many texts as two arrays, for :meth:`Index.text`: all bytes, and where each text ends."""
    ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)), dtype=np.int64)
    return {name: np.frombuffer(b''.join(texts), np.uint8), f'{name}_ends': ends}


def cache_folder(folder: str | os.PathLike | None) -> Path:
    """Where index files go: ``folder``, or what the environment variable ``POA_MM_INDEX`` says, or a default."""
    return Path(folder or os.environ.get(CACHE) or DEFAULT_CACHE).expanduser()


def open_or_build(
    path: Path, is_fresh: Callable[[Index], bool], build: Callable[[], tuple[dict[str, Any], dict[str, np.ndarray]]]
) -> Index:
    """Map an index file; of the processes that ask for one that is missing or stale, the first builds it.

    Args:
        path: The file.
        is_fresh: Whether what it holds is still so.
        build: Gives metadata and arrays of a new one.

    Returns:
        The index, mapped; or in memory, after a warning, where the file cannot be written.
    """
    index = read_index(path)
    if index is not None and is_fresh(index):
        return index
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(path))
        except OSError as error:
            _warn(path, error)
            return in_child(lambda: Index(*build()))
        index = read_index(path)
        if index is None or not is_fresh(index):
            index = in_child(lambda: _written(path, Index(*build()))) or read_index(path)
        return index


def _written(path: Path, index: Index) -> Index | None:
    """Write an index, or give it back after a warning."""
    try:
        write_index(path, index)
    except OSError as error:
        _warn(path, error)
        return index
    return None


def in_child(work: Callable[[], Any]) -> Any:
    """What ``work`` returns or raises in a process of its own: all the memory that it takes is given back."""
    if current_process().daemon:  # may have no children
        return work()
    receiver, sender = (context := get_context('fork')).Pipe(duplex=False)

    def run() -> None:
        try:
            result = (True, work())
        except Exception as error:
            result = (False, error)
        sender.send(result)

    child = context.Process(target=run)
    child.start()
    sender.close()
    try:
        good, result = receiver.recv()
    except EOFError:
        child.join()
        raise RuntimeError(f'the process that lists the images ended with code {child.exitcode}') from None
    child.join()
    if not good:
        raise result
    return result


def _warn(path: Path, error: OSError) -> None:
    print_log(
        f'The index of the images cannot be kept in {path.parent} ({error.strerror or error}): each process builds its '
        f'own. cache_dir of the data set, or the environment variable {CACHE}, says where else.',
        logger='current',
        level=logging.WARNING,
    )


def write_index(path: Path, index: Index) -> None:
    """Write an index: the file appears whole or not at all.

    Raises:
        OSError: If that fails; the file is what it was before, or still missing.
    """
    described, offset = {}, 0
    for name, array in index.arrays.items():
        described[name] = dict(dtype=array.dtype.str, shape=array.shape, offset=offset)
        offset += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    header = json.dumps(dict(meta=index.meta, arrays=described, bytes=offset)).encode()
    header += b' ' * (-(len(MAGIC) + 8 + len(header)) % ALIGNMENT)
    for left in path.parent.glob(f'.{path.name}.*.tmp'):  # by a process that was killed: the lock is ours
        left.unlink(missing_ok=True)
    temporary = path.with_name(f'.{path.name}.{os.uname().nodename}.{os.getpid()}.tmp')
    try:
        with temporary.open('wb') as file:
            file.write(MAGIC + len(header).to_bytes(8, 'little') + header)
            for array in index.arrays.values():
                if array.nbytes:
                    file.write(np.ascontiguousarray(array).data.cast('B'))
                    file.write(bytes(-array.nbytes % ALIGNMENT))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_index(path: Path) -> Index | None:
    """Map an index; None where there is none, or what is there is not whole."""
    try:
        with path.open('rb') as file:
            if file.read(len(MAGIC)) != MAGIC:
                return None
            header = file.read(int.from_bytes(file.read(8), 'little'))
            start = file.tell()
        described = json.loads(header)
        if path.stat().st_size != start + described['bytes']:
            return None
        content = np.memmap(path, mode='r')  # once: each map holds a file open
        arrays = {name: _view(content[start:], **array) for name, array in described['arrays'].items()}
    except (OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError):
        return None
    return Index(described['meta'], arrays, path)


def _view(content: np.ndarray, dtype: str, shape: Sequence[int], offset: int) -> np.ndarray:
    kind = np.dtype(dtype)
    return content[offset : offset + kind.itemsize * math.prod(shape)].view(kind).reshape(shape)


def _read_same(path: Path, digest: str) -> Index:
    index = read_index(path)
    if index is None or index.meta['digest'] != digest:
        raise RuntimeError(f'the index {path} has changed since this run began')
    return index


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; all at once on storage that cannot lock, which is slower and as correct."""
    with path.with_name(f'.{path.name}.lock').open('wb') as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file unlocks it
