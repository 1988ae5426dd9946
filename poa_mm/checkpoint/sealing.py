"""Whether a file holds what was written: the seal of our archives, and the CRC-32 of all others.

A zip archive may end with a comment. Ours is ``SEAL`` and the SHA-256, in hexadecimal, of all that comes before the
latter: in the file itself, it is never out of step with it, and no other reader minds.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path

from .errors import CheckpointError

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
    chunks: list[bytes | memoryview] = [memoryview(data)[:-2], (len(SEAL) + DIGEST).to_bytes(2, 'little') + SEAL]
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return [*chunks, digest.hexdigest().encode()]


def sealed_with(path: Path) -> str | None:
    """The SHA-256 that a file says it has without it; of a file without seal, nothing."""
    with path.open('rb') as file:
        file.seek(max(0, path.stat().st_size - len(SEAL) - DIGEST))
        seal = file.read()
    return seal[len(SEAL) :].decode('latin1') if seal.startswith(SEAL) else None


def sha256_of(path: str | os.PathLike, size: int | None = None) -> str:
    """SHA-256 of the first ``size`` bytes of a file, in hexadecimal. Default: of all."""
    size = Path(path).stat().st_size if size is None else size
    digest = hashlib.sha256()
    with Path(path).open('rb') as file:
        while size > 0 and (chunk := file.read(min(size, 1 << 20))):
            digest.update(chunk)
            size -= len(chunk)
    return digest.hexdigest()


def is_archive(path: Path) -> bool:
    """Whether a file is a zip archive, as ``torch.save`` writes, by its first bytes or its seal."""
    with path.open('rb') as file:
        return file.read(4) == b'PK\x03\x04' or sealed_with(path) is not None


def check_is_file(path: Path) -> None:
    """Check that there is a file with something in it.

    Raises:
        CheckpointError: If there is not; says what is there.
    """
    if not path.is_file():
        if ':/' in str(path):  # of a URL, Path leaves one slash
            raise CheckpointError(f'{path}: expected a file on this machine, found a URL; download it first')
        found = 'a folder' if path.is_dir() else 'nothing'
        raise CheckpointError(f'{path}: expected a checkpoint file, found {found}')
    if path.stat().st_size == 0:
        raise CheckpointError(f'{path}: expected a checkpoint, found an empty file')


def check_file(path: Path) -> None:
    """Check that one file of ``torch.save`` holds what was written, bit by bit.

    A sealed one is compared with its SHA-256, any other with the CRC-32 of each of its tensors.

    Raises:
        CheckpointError: If it does not, or is no such file.
    """
    check_is_file(path)
    if (seal := sealed_with(path)) is not None:
        if sha256_of(path, path.stat().st_size - DIGEST) != seal:
            raise CheckpointError(f'{path}: is damaged: its SHA-256 is not the one it was written with')
        return
    try:
        with zipfile.ZipFile(path) as file:
            # torch writes 0 everywhere after set_crc32_options(False); then there is nothing to compare with.
            damaged = file.testzip() if any(entry.CRC for entry in file.infolist()) else None
    except Exception as error:  # of a broken archive, any
        raise CheckpointError(
            f'{path}: expected a checkpoint of torch.save, but cannot read it (cut short, or damaged?): {error}'
        ) from error
    if damaged is not None:
        raise CheckpointError(f'{path}: is damaged: the CRC-32 of {damaged} is not the one it was written with')
