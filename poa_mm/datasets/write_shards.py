"""Images of any source, packed into tar files of WebDataset's layout."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .listing import BAND_SUFFIXES
from .sources import ImageSource
from .sources.shards import read_contents
from .sources.tar import CLASSES

PLAN = 'shards.json'  # what the shards of a folder are of


def write_shards(
    source: ImageSource,
    folder: str | os.PathLike,
    per_shard: int = 10_000,
    prefix: str = 'train',
    progress: Callable[[int], None] | None = None,
) -> list[Path]:
    """Pack images into shards, which :class:`~poa_mm.datasets.TarImages` reads in the same order.

    Image ``i`` becomes ``00000000i.jpg`` (with its own suffix), with its name in a ``.json`` and, where it has one, its
    class in a ``.cls`` beside it. Each shard is read back and compared before it gets its name. What is there of an
    earlier call with the same images is kept; names of classes go to ``classes.txt``.

    Args:
        source: The images.
        folder: Where the shards go; made if it is missing.
        per_shard: Images of a shard. Default: 10,000.
        prefix: Of the names of the shards. Default: 'train'.
        progress: Called with the number of images done since its last call. Default: None.

    Returns:
        The shards, in order.

    Raises:
        ValueError: If the folder holds shards of other images or another size, or an option is not valid.
        OSError: If an image cannot be read, or a shard not be written; no shard is left half written.
    """
    if per_shard < 1 or not prefix or os.path.basename(prefix) != prefix or prefix.startswith('.'):
        raise ValueError(f'per_shard {per_shard} must be positive and prefix {prefix!r} the beginning of a name')
    folder = Path(folder)
    starts = range(0, len(source), per_shard)
    paths = [folder / f'{prefix}-{shard:06d}.tar' for shard in range(len(starts))]
    classes = None if source.classes is None else list(source.classes)
    plan = dict(images=len(source), per_shard=per_shard, digest=source.digest, classes=classes)
    folder.mkdir(parents=True, exist_ok=True)
    _agree(folder / f'{prefix}-{PLAN}', plan, paths)
    if classes is not None:
        _write(folder / CLASSES, ''.join(f'{name}\n' for name in classes).encode())
    for start, path in zip(starts, paths):
        numbers = range(start, min(start + per_shard, len(source)))
        if path.is_file():
            if progress is not None:
                progress(len(numbers))
            continue
        _write_shard(source, numbers, path, progress)
    return paths


def _agree(file: Path, plan: dict[str, Any], paths: list[Path]) -> None:
    """Compare what is to be written with what was begun here."""
    if file.is_file():
        begun = json.loads(file.read_text())
        if begun != plan:
            differ = ', '.join(key for key in plan if begun.get(key) != plan[key])
            raise ValueError(
                f'{file.parent} has shards of other images (other {differ}: {begun.get("images")} images, '
                f'{begun.get("per_shard")} a shard; now {plan["images"]} and {plan["per_shard"]}); take another folder'
            )
    elif found := [path.name for path in paths if path.exists()]:
        raise ValueError(f'{file.parent} has {found[0]} of another origin; take another folder')
    else:
        _write(file, json.dumps(plan, indent=1).encode())


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f'.{path.name}.tmp')
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_shard(source: ImageSource, numbers: range, path: Path, progress: Callable[[int], None] | None) -> None:
    temporary = path.with_name(f'.{path.name}.tmp')
    hashes, suffixes = [], set()
    try:
        with temporary.open('wb') as file:
            with tarfile.open(fileobj=file, mode='w', format=tarfile.GNU_FORMAT) as tar:
                for number in numbers:
                    content, suffix = _content(source, number)
                    _add(tar, f'{number:09d}{suffix}', content)
                    _add(tar, f'{number:09d}.json', json.dumps(dict(name=source.key(number))).encode())
                    if (label := source.label(number)) is not None:
                        _add(tar, f'{number:09d}.cls', b'%d' % label)
                    hashes.append(hashlib.sha256(content).digest())
                    suffixes.add(suffix)
                    if progress is not None:
                        progress(1)
            file.flush()
            os.fsync(file.fileno())
        _verify(source, numbers, temporary, hashes, frozenset(suffixes))
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _content(source: ImageSource, number: int) -> tuple[bytes, str]:
    """Content and suffix of an image's file; pixels become ``.npy``."""
    content = source.read(number)
    if isinstance(content, bytes):
        suffix = os.path.splitext(source.key(number))[1].lower()
        return content, suffix if suffix in BAND_SUFFIXES else _sniffed(content, source.name(number))
    file = io.BytesIO()
    np.save(file, content)
    return file.getvalue(), '.npy'


def _sniffed(content: bytes, name: str) -> str:
    """The suffix that a file should have."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            suffix = '.' + image.format.lower()
    except OSError:
        suffix = ''
    if suffix not in BAND_SUFFIXES:
        raise ValueError(f'{name} is no image of a known kind')
    return suffix


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # without times and owners: the same images give the same bytes
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _verify(source: ImageSource, numbers: range, path: Path, hashes: list[bytes], suffixes: frozenset[str]) -> None:
    """Read a shard back as training will, and compare what was written.

    Raises:
        OSError: If anything is not as it should be.
    """
    contents = read_contents(path, suffixes, image=None, label='cls')
    labels = [source.label(number) for number in numbers]
    with path.open('rb') as file:
        for offset, size, expected in zip(contents.offsets, contents.sizes, hashes):
            file.seek(offset)
            if hashlib.sha256(file.read(size)).digest() != expected:
                raise OSError(f'{path}: what was written is not what is read back, at byte {offset}')
    if contents.error or len(contents.offsets) != len(numbers) or contents.labels != labels:
        raise OSError(f'{path}: what was written is not what is read back: {contents.error or "samples are missing"}')
