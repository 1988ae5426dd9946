"""Checkpoints of sharded training: folders that all ranks write and any number of ranks reads.

A folder holds tensors in safetensors files, written and read by ``torch.distributed.checkpoint`` (DCP), and all else
in one file of ``torch.save``, ``checkpoint.pth``. DCP's usual format describes its files in a pickle; this one has
none.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_gather_object, barrier, get_rank, get_world_size, is_main_process
from torch import Tensor

from poa_mm.main_process import on_main

from .atomic_files import TEMPORARY, replace_folder, write_file
from .errors import CheckpointError, CheckpointWriteError, shorten
from .sealing import check_file, sealed, sha256_of
from .single_file import read_file

try:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
except ImportError:
    dcp = None  # type: ignore[assignment]

SHARDED = 'checkpoint.pth'  # in the folder: all but the tensors
WEIGHTS, OPTIMIZER = 'state_dict.', 'optimizer.state.'


def check_torch(what: str) -> None:
    """Check that this torch can shard.

    Args:
        what: What the error says that it is needed for.

    Raises:
        ValueError: If it cannot.
    """
    if dcp is None:
        raise ValueError(
            f'{what} needs torch 2.8 or newer, and this is {torch.__version__}; distributed training without sharding '
            '(no runner_type, no strategy) and its checkpoints work with either'
        )


def optimizer_tensors(state: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The state of an optimizer, by parameter and name, under the names that a sharded checkpoint has for it."""
    return {f'{OPTIMIZER}{index}.{name}': value for index, entries in state.items() for name, value in entries.items()}


# --- writing ---------------------------------------------------------------------------------


def save_sharded(checkpoint: Mapping[str, Any], folder: str | os.PathLike) -> None:
    """Write a checkpoint as a folder, in which each rank has a file of its own; all ranks take part.

    The folder appears complete or not at all: it is written under a temporary name, synced and renamed. Its
    ``checkpoint.pth`` holds the SHA-256 of all other files, and is sealed with its own.

    Args:
        checkpoint: As mmengine's, with whole or distributed tensors in ``state_dict`` and ``optimizer.state``. What
            else is in it is that of rank 0.
        folder: Where to; what is there is replaced. All ranks have to see the same file system.

    Raises:
        CheckpointWriteError: If that fails on any rank, on all of them; what was there stays.
    """
    folder = Path(folder).absolute()
    temporary = folder.with_name(TEMPORARY.format(folder.name))
    rest = {name: value for name, value in checkpoint.items() if name != 'state_dict'}
    tensors = {f'{WEIGHTS}{name}': tensor for name, tensor in checkpoint['state_dict'].items()}
    if 'optimizer' in rest:
        tensors |= optimizer_tensors(rest['optimizer']['state'])
        rest['optimizer'] = {name: value for name, value in rest['optimizer'].items() if name != 'state'}
    if is_main_process():
        shutil.rmtree(temporary, ignore_errors=True)
    barrier()
    try:
        writer = HuggingFaceStorageWriter(str(temporary), save_distributed=True)
        dcp.save(tensors, storage_writer=writer, no_dist=get_world_size() == 1)
        # Each rank reads a part of the files; the work is to hash them.
        mine = sorted(temporary.glob('*.safetensors'))[get_rank() :: get_world_size()]
        hashes = all_gather_object({path.name: sha256_of(path) for path in mine})
        rest['files'] = {name: digest for part in hashes for name, digest in part.items()}
        on_main(_finish, rest, temporary, folder)
    except (dcp.api.CheckpointException, OSError) as error:  # the former collects the errors of all ranks
        if is_main_process():
            shutil.rmtree(temporary, ignore_errors=True)
        first = next(iter(error.failures.values()))[0] if isinstance(error, dcp.api.CheckpointException) else error
        if isinstance(first, OSError):
            reason = f'could not be written ({first.strerror or first}); earlier checkpoints are as they were'
            raise CheckpointWriteError(first.errno, reason, str(folder)) from error
        raise


def _finish(rest: dict[str, Any], temporary: Path, folder: Path) -> None:
    data = io.BytesIO()
    torch.save(rest, data)
    write_file(temporary / SHARDED, sealed(data.getvalue()))
    replace_folder(temporary, folder)


# --- reading ---------------------------------------------------------------------------------


def is_sharded(path: str | os.PathLike) -> bool:
    """Whether ``path`` is the folder of a sharded checkpoint."""
    return Path(path, SHARDED).is_file()


def check_sharded(folder: Path) -> None:
    """Check that each file of a sharded checkpoint holds what was written, bit by bit.

    Raises:
        CheckpointError: If one does not, or is missing; names it.
    """
    check_file(folder / SHARDED)
    for name, digest in read_file(folder / SHARDED).get('files', {}).items():
        if not (folder / name).is_file() or sha256_of(folder / name) != digest:
            raise CheckpointError(f'{folder / name}: is damaged: its SHA-256 is not the one it was written with')


def read_sharded(folder: Path, weights: bool = True) -> dict[str, Any]:
    """A checkpoint as it was before it was sharded; nothing in the folder is executed.

    Args:
        folder: What :func:`save_sharded` has written.
        weights: Read ``state_dict``, all of it, into the memory of this process. Otherwise its tensors are on the
            device ``meta``, as those of ``optimizer.state`` are in any case. Default: ``True``.

    Raises:
        CheckpointError: As :func:`~poa_mm.checkpoint.read_checkpoint`; also if torch is too old.
    """
    checkpoint = read_file(folder / SHARDED)
    files = checkpoint.pop('files', None)
    if not isinstance(files, Mapping):
        raise CheckpointError(f'{folder}: expected a sharded checkpoint, found only {shorten(checkpoint)}')
    if missing := [name for name in files if not (folder / str(name)).is_file()]:
        raise CheckpointError(f'{folder}: is a sharded checkpoint that lacks {shorten(missing)}')
    described = _described(folder)
    tensors = {name[len(WEIGHTS) :]: tensor for name, tensor in described.items() if name.startswith(WEIGHTS)}
    if weights:
        tensors = {name: torch.empty_like(tensor, device='cpu') for name, tensor in tensors.items()}
        load_tensors(folder, {f'{WEIGHTS}{name}': tensor for name, tensor in tensors.items()}, no_dist=True)
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in described.items():
        if name.startswith(OPTIMIZER):
            index, _, key = name[len(OPTIMIZER) :].partition('.')
            state.setdefault(int(index), {})[key] = tensor
    checkpoint['state_dict'] = tensors
    if 'optimizer' in checkpoint:
        checkpoint['optimizer']['state'] = state
    return checkpoint


def _described(folder: Path) -> dict[str, Tensor]:
    """What the files of a folder say of its tensors: all of them, on the device ``meta``."""
    _check_readable(folder)
    try:
        metadata: Any = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except Exception as error:  # of a broken file, any
        raise CheckpointError(f'{folder}: expected safetensors files of DCP, but cannot read them: {error}') from error
    return {
        name: torch.empty(entry.size, dtype=entry.properties.dtype, device='meta') for name, entry in metadata.items()
    }


def load_tensors(folder: str | os.PathLike, tensors: dict[str, Tensor], no_dist: bool = False) -> None:
    """Fill whole or distributed tensors from a sharded checkpoint of any number of ranks.

    Args:
        folder: The checkpoint.
        tensors: What to fill, by the names in the files; of the right shapes.
        no_dist: This process reads by itself. By default, all ranks take part.

    Raises:
        CheckpointError: If that fails.
    """
    _check_readable(folder)
    reader = HuggingFaceStorageReader(str(folder))
    try:
        dcp.load(tensors, storage_reader=reader, no_dist=no_dist or get_world_size() == 1)
    except dcp.api.CheckpointException as error:
        first = next(iter(error.failures.values()))[0]
        raise CheckpointError(f'{folder}: cannot be read: {first}') from error


def _check_readable(folder: str | os.PathLike) -> None:
    try:
        check_torch(f'{folder}: a sharded checkpoint')
    except ValueError as error:
        raise CheckpointError(str(error)) from None
