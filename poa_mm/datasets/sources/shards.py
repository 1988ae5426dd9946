"""Tar files of images in WebDataset's layout: which there are, and what lies where in them."""

from __future__ import annotations

import glob
import itertools
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

BLOCK = 512  # bytes; tar files consist of such blocks, and end with two of zeros
NO_LABEL = -1
COMPRESSIONS = {
    b'\x1f\x8b': ('gzip', 'gunzip'),
    b'BZh': ('bzip2', 'bunzip2'),
    b'\xfd7zXZ\x00': ('xz', 'unxz'),
    b'\x28\xb5\x2f\xfd': ('zstd', 'unzstd'),
    b'\x04\x22\x4d\x18': ('lz4', 'unlz4'),
}


class ShardError(ValueError):
    """Shards that are missing, or that cannot be used."""


def find_shards(root: str | os.PathLike, shards: str | Sequence[str] = '*.tar') -> list[Path]:
    """The shards that a pattern names, in order.

    Args:
        root: Folder that the names are relative to.
        shards: One pattern or several. ``{000000..000127}`` stands for all the numbers between, ``{a,b}`` for
            either, and ``*``, ``?`` and ``[..]`` match what is there, in the order of the names.
            Default: all tar files of the folder.

    Raises:
        ShardError: If a shard is missing, or is named twice.
        FileNotFoundError: If the folder is missing.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f'{root} is no folder (data_root of shards)')
    found: list[Path] = []
    missing: list[str] = []
    for pattern in itertools.chain.from_iterable(map(_expanded, [shards] if isinstance(shards, str) else shards)):
        if glob.has_magic(pattern):
            matches = sorted(glob.glob(pattern, root_dir=root))
            found += [root / match for match in matches]
            missing += [] if matches else [pattern]
        elif (root / pattern).is_file():
            found.append(root / pattern)
        else:
            missing.append(pattern)
    if missing or not found:
        raise ShardError(f'{len(missing)} shards are not in {root}: {_listed(missing) or repr(shards)}')
    twice = [str(path) for path, number in Counter(found).items() if number > 1]
    if twice:
        raise ShardError(f'shards are named twice: {_listed(twice)}')
    return found


def _expanded(pattern: str) -> Iterator[str]:
    """What a pattern with braces stands for."""
    match = re.search(r'\{([^{}]*)\}', pattern)
    if match is None:
        yield pattern
        return
    numbers = re.fullmatch(r'(\d+)\.\.(\d+)', match[1])
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        if last < first:
            raise ShardError(f'{match[0]} of {pattern!r} counts down; write the smaller number first')
        parts = [f'{number:0{len(numbers[1])}d}' for number in range(first, last + 1)]
    elif ',' in match[1]:
        parts = match[1].split(',')
    else:
        raise ShardError(f'{match[0]} of {pattern!r} is neither {{000..127}} nor {{a,b}}')
    for part in parts:
        yield from _expanded(pattern[: match.start()] + part + pattern[match.end() :])


def _listed(names: Sequence[str], number: int = 5) -> str:
    more = f' and {len(names) - number} more' if len(names) > number else ''
    return ', '.join(names[:number]) + more


@dataclass
class Contents:
    """What one shard holds, in its order."""

    names: list[bytes] = field(default_factory=list)  # of the images' files
    offsets: list[int] = field(default_factory=list)  # where their bytes begin
    sizes: list[int] = field(default_factory=list)  # how many there are
    labels: list[int | str | None] = field(default_factory=list)
    left_out: Counter = field(default_factory=Counter)  # files that are neither an image nor a label, by suffix
    error: str | None = None  # why the shard cannot be used


def read_contents(path: Path, suffixes: frozenset[str], image: str | None, label: str) -> Contents:
    """List the samples of a shard, reading its headers and labels only.

    Files that stand beside each other and whose names are equal up to the first dot are one sample.

    Args:
        path: The shard.
        suffixes: Of images, in lower case, with their dots.
        image: What of a sample's files is the image, such as 'jpg'. None: the one with a suffix of images.
        label: ``'cls'`` or ``'txt'``: the file of a sample that holds the class, as a number or a name; ``'json.KEY'``:
            the entry of its json.
    """
    contents = Contents()
    try:
        _check_not_compressed(path)
        with tarfile.open(path, 'r:') as tar:
            for key, members in itertools.groupby(_members(tar, contents), key=lambda member: _split(member.name)[0]):
                _add_sample(contents, tar, key, list(members), suffixes, image, label)
            _check_end(path, tar.offset)
    except (OSError, tarfile.TarError, ValueError, EOFError) as error:
        contents.error = str(getattr(error, 'strerror', None) or error)
    return contents


def _check_not_compressed(path: Path) -> None:
    with path.open('rb') as file:
        start = file.read(8)
    for magic, (name, command) in COMPRESSIONS.items():
        if start.startswith(magic):
            raise ValueError(
                f'is compressed ({name}), so that nothing in it can be read in place; unpack it ({command})'
            )
    if not start:
        raise ValueError('is empty')


def _check_end(path: Path, offset: int) -> None:
    """A tar file ends with zeros; ``tarfile`` stops without a word at anything that is no header."""
    with path.open('rb') as file:
        file.seek(offset)
        block = file.read(BLOCK)
    if len(block) < BLOCK:
        raise ValueError(f'is truncated: it has no end mark at byte {offset}')
    if any(block):
        raise ValueError(f'is damaged at byte {offset}')


def _members(tar: tarfile.TarFile, contents: Contents) -> Iterator[tarfile.TarInfo]:
    """The files of an archive that count."""
    while (member := tar.next()) is not None:
        tar.members = []  # or all of them stay in memory, a kilobyte each
        if member.isdir():
            continue
        if os.path.basename(member.name).startswith('.'):
            contents.left_out['hidden'] += 1
        elif not member.isreg():
            contents.left_out['links and special files'] += 1
        elif member.issparse():
            raise ValueError(f'holds a sparse file ({member.name}), which cannot be read in place')
        else:
            yield member


def _split(name: str) -> tuple[str, str]:
    """Name of the sample and what is behind the first dot, in lower case, as WebDataset has it."""
    folder, base = os.path.split(name)
    stem, _, suffix = base.partition('.')
    return os.path.join(folder, stem), suffix.lower()


def _add_sample(
    contents: Contents,
    tar: tarfile.TarFile,
    key: str,
    members: Sequence[tarfile.TarInfo],
    suffixes: frozenset[str],
    image: str | None,
    label: str,
) -> None:
    by_suffix: dict[str, tarfile.TarInfo] = {}
    for member in members:
        suffix = _split(member.name)[1]
        if suffix in by_suffix:
            raise ValueError(f'holds {member.name!r} twice in a row')
        by_suffix[suffix] = member
    if image is None:
        images = [suffix for suffix in by_suffix if '.' + suffix.rpartition('.')[2] in suffixes]
    else:
        images = [suffix for suffix in by_suffix if suffix == image]
    if len(images) > 1:
        raise ValueError(f'has {len(images)} images for {key!r}: {", ".join(images)}; say which: image={images[0]!r}')
    kind, _, entry = label.partition('.')
    if images:
        for suffix in by_suffix.keys() - images - {'json', kind}:
            contents.left_out['.' + suffix] += 1
        member = by_suffix[images[0]]
        contents.names.append(os.fsencode(member.name))
        contents.offsets.append(member.offset_data)
        contents.sizes.append(member.size)
        contents.labels.append(_label(tar, by_suffix.get(kind), entry))
    else:
        contents.left_out['.' + ', .'.join(sorted(by_suffix))] += 1


def _label(tar: tarfile.TarFile, member: tarfile.TarInfo | None, entry: str) -> int | str | None:
    if member is None:
        return None
    tar.fileobj.seek(member.offset_data)
    content = tar.fileobj.read(member.size)
    try:
        value = json.loads(content)[entry] if entry else content.decode().strip()
        value = int(value) if isinstance(value, str) and re.fullmatch(r'-?\d+', value) else value
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{member.name!r} holds no class: {type(error).__name__} {error}') from None
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, str))
        or value == ''
        or (isinstance(value, int) and value < 0)
    ):
        raise ValueError(f'{member.name!r} holds no class, but {value!r}')
    return value
