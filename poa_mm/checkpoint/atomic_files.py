"""Files that are there whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

from .errors import CheckpointWriteError
from .sealing import sealed

TEMPORARY = '.{}.tmp'  # beside the file, and never taken for a checkpoint


class AtomicBackend(LocalBackend):
    """mmengine's storage on local disks, for runs that may be killed: ``backend_args=dict(backend='atomic')``.

    A file is written under a temporary name in its folder, synced and renamed. Archives of ``torch.save`` are
    sealed with their SHA-256, which :func:`~poa_mm.checkpoint.check_integrity` compares.
    """

    def put(self, obj: bytes, filepath: str | os.PathLike) -> None:
        """Write bytes.

        Raises:
            CheckpointWriteError: If that fails; the file is what it was before, or still missing.
        """
        write_file(filepath, sealed(obj))

    def put_text(self, obj: str, filepath: str | os.PathLike, encoding: str = 'utf-8') -> None:
        """Write text. Raises the errors of :meth:`put`."""
        write_file(filepath, [obj.encode(encoding)])


register_backend('atomic', AtomicBackend, force=True)


def write_file(path: str | os.PathLike, chunks: Iterable[bytes | memoryview]) -> None:
    """Write a file of these chunks; its folder is made if it is missing.

    Raises:
        CheckpointWriteError: If that fails; the file is what it was before, or still missing.
    """
    path = Path(path)
    temporary = path.with_name(TEMPORARY.format(path.name))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open('wb') as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            reason = f'could not be written ({error.strerror or error}); earlier checkpoints are as they were'
            raise CheckpointWriteError(error.errno, reason, str(path)) from error
        raise


def _sync_folder(folder: Path) -> None:
    """Make a rename in the folder survive a power failure, where the file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def replace_folder(temporary: Path, folder: Path) -> None:
    """Give a folder, whose files are synced, its name; another one that had it is removed."""
    old = folder.with_name(TEMPORARY.format(f'old.{folder.name}'))
    remove(old)
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    _sync_folder(folder.parent)
    remove(old)


def remove(path: str | os.PathLike) -> None:
    """Remove a file or a folder, if it is there."""
    path = Path(path)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_temporaries(folder: str | os.PathLike) -> None:
    """Remove what killed runs have left of checkpoints; nobody else may be writing into the folder."""
    for path in Path(folder).glob(TEMPORARY.format('*.pth')):
        remove(path)
