"""Reading and checking a checkpoint of either kind, one file or the folder of a sharded run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .sealing import check_file, sha256_of
from .sharded import SHARDED, check_sharded, is_sharded, read_sharded
from .single_file import read_file


def read_checkpoint(path: str | os.PathLike, weights: bool = True) -> dict[str, Any]:
    """Contents of a checkpoint, all tensors on the CPU; nothing in it is executed.

    Objects that mmengine stores beside the weights become stand-ins, which hold nothing except, for its logs, the
    numbers (:class:`~poa_mm.checkpoint.unpickling.History`). Single numbers of numpy become Python's.

    Args:
        path: A file of ``torch.save`` (``.pth``, ``.pt``), a ``.safetensors`` file, which becomes
            ``{'state_dict': tensors, 'meta': metadata}``, or the folder of a sharded checkpoint
            (:func:`~poa_mm.checkpoint.sharded.read_sharded`).
        weights: Read what the tensors hold, and compare a file of ``torch.save`` with its SHA-256 or, without
            seal, with its CRC-32. Otherwise the tensors of such a file are on the device ``meta``, which takes
            milliseconds. Default: ``True``.

    Raises:
        CheckpointError: If the file is missing or broken, is of another kind, or holds anything else than
            tensors and plain data.
    """
    path = Path(path)
    return read_sharded(path, weights) if is_sharded(path) else read_file(path, weights)


def check_integrity(path: str | os.PathLike) -> None:
    """Check that a checkpoint holds what was written, bit by bit.

    A sealed file of ``torch.save`` is compared with its SHA-256, any other with the CRC-32 of each of its tensors, and
    each file of a sharded checkpoint with its SHA-256.

    Raises:
        CheckpointError: If it does not, or is no checkpoint.
    """
    path = Path(path)
    if is_sharded(path):
        check_sharded(path)
    else:
        check_file(path)


def file_sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file, in hexadecimal; of a sharded checkpoint, that of the file in it that holds all others'."""
    return sha256_of(Path(path, SHARDED) if is_sharded(path) else path)
