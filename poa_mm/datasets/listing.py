"""Which files of a folder are its images, and which of its folders are classes.

The rules, for every data set that is a folder: a file is an image by its suffix, in capitals or not; files and
folders whose names begin with a dot are hidden and don't count; links are followed, unless they lead back to a
folder above. What is not used is counted.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from mmengine.fileio import get_file_backend

# What SafeLoadImageFromFile decodes.
SUFFIXES = (
    *('.jpg', '.jpeg', '.jpe', '.jfif', '.mpo', '.png', '.apng', '.gif', '.webp', '.avif'),
    *('.tif', '.tiff', '.bmp', '.dib', '.ppm', '.pgm', '.pbm', '.pnm', '.pfm'),
    *('.jp2', '.j2k', '.j2c', '.jpc', '.jpf', '.jpx', '.ico', '.tga', '.pcx', '.sgi', '.qoi'),
)
BAND_SUFFIXES = (*SUFFIXES, '.npy')  # what LoadBands reads
NO_SUFFIX = 'without suffix'
NO_FILE = 'neither file nor folder'  # a link to nothing, a socket ..
OUTSIDE = 'outside of the class folders'
CLOCK_TICK = 0.02  # seconds
FILE, FOLDER = 'file', 'folder'


@dataclass
class Counts:
    """What a search has come across.

    Attributes:
        used: Images by suffix, in small letters.
        left_out: Files that are no images by suffix, or by what they are instead.
        hidden: Hidden files and folders; what such a folder holds is not counted.
        loops: Folders that were not entered because they lead back to one above, relative to the root.
        folders: Folders that were looked through, relative to the root, with the time of their last change in ns. What
            came, went or was renamed in one since then has given it another.
    """

    used: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    hidden: int = 0
    loops: list[str] = field(default_factory=list)
    folders: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        """Such as ``12 images used (8 .webp, 4 .jpg); 1 file left out (1 .txt)``."""
        parts = [_listed(self.used, 'image', 'used')]
        if self.left_out:
            parts.append(_listed(self.left_out, 'file', 'left out'))
        if self.hidden:
            parts.append(f'{self.hidden} hidden skipped')
        if self.loops:
            shown = ', '.join(self.loops[:3]) + (', ..' if len(self.loops) > 3 else '')
            parts.append(f'{_number(len(self.loops), "link")} to a folder above skipped ({shown})')
        return '; '.join(parts)


def _listed(counts: Counter[str], what: str, verb: str) -> str:
    kinds = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    listed = ', '.join(f'{number} {kind}' for kind, number in kinds)
    return f'{_number(counts.total(), what)} {verb}' + (f' ({listed})' if listed else '')


def _number(number: int, what: str) -> str:
    return f'{number} {what}' if number == 1 else f'{number} {what}s'


def list_images(root: str | os.PathLike, suffixes: Collection[str] = SUFFIXES) -> tuple[list[str], Counts]:
    """All images below a folder.

    Args:
        root: The folder, or a URL that one of mmengine's storage backends lists.
        suffixes: Of images, in small letters. Default: all that can be decoded.

    Returns:
        Their paths relative to ``root``, sorted, and the counts.

    Raises:
        OSError: If the folder, or one below, is missing or cannot be read.
    """
    counts = Counts()
    return sorted(iter_images(root, counts, suffixes)), counts


def iter_images(
    root: str | os.PathLike, counts: Counts, suffixes: Collection[str] = SUFFIXES, folder: str = ''
) -> Iterator[str]:
    """Images below a folder, in the order in which the file system has them.

    Args:
        root: As for :func:`list_images`.
        counts: Is added to.
        suffixes: As for :func:`list_images`.
        folder: Look only below this one in ``root``. Default: all.

    Yields:
        Paths relative to ``root``.

    Raises:
        OSError: As :func:`list_images`.
    """
    root = os.fspath(root)
    files = _remote_files(root, folder, counts) if '://' in root else _local_files(root, folder, counts)
    plain = {suffix for suffix in suffixes if suffix.startswith('.') and suffix.count('.') == 1}
    other = tuple(set(suffixes) - plain)  # such as '.ome.tif'
    used, left_out = counts.used, counts.left_out
    for parent, name in files:
        lowered = name.lower()
        dot = lowered.rfind('.')
        suffix = lowered[dot:] if dot >= 0 else NO_SUFFIX
        if suffix in plain or (other and lowered.endswith(other)):
            used[suffix] += 1
            yield parent + name
        else:
            left_out[suffix] += 1


def class_folders(root: str | os.PathLike, counts: Counts | None = None) -> list[str]:
    """Names of the folders in a folder, sorted: the classes of a data set. Hidden ones are none.

    Args:
        root: As for :func:`list_images`.
        counts: Is added to: hidden folders, links to ``root`` or above, and files beside the folders, which belong to
            no class. Default: nobody asks.

    Raises:
        OSError: As :func:`list_images`.
    """
    root, counts = os.fspath(root), Counts() if counts is None else counts
    if '://' in root:
        backend = get_file_backend(root, enable_singleton=True)
        files = set(backend.list_dir_or_file(root, list_dir=False))
        folders = set(backend.list_dir_or_file(root, list_file=False))
    else:
        counts.folders[''] = _settled(root).st_mtime_ns
        with os.scandir(root) as entries:
            kinds = {entry.name: _kind(entry) for entry in entries}
        files = {name for name, kind in kinds.items() if kind != FOLDER}
        folders = kinds.keys() - files
        above = _with_those_above(root)
        loops = {name for name in folders if _identity(os.path.join(root, name)) in above}
        counts.loops += sorted(loops)
        folders -= loops
    visible = sorted(name for name in folders if not name.startswith('.'))
    outside = sum(not name.startswith('.') for name in files)
    if outside:
        counts.left_out[OUTSIDE] += outside
    counts.hidden += len(folders) - len(visible) + len(files) - outside
    return visible


def _kind(entry: os.DirEntry) -> str:
    """What an entry is, or leads to."""
    try:
        return FILE if entry.is_file() else FOLDER if entry.is_dir() else NO_FILE
    except OSError:  # a link to itself
        return NO_FILE


def _identity(path: str) -> tuple[int, int]:
    """What a folder is on the disk, however one came to it."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _settled(path: str) -> os.stat_result:
    """Status of a folder, at a moment after which any change gives it another time: clocks of disks are coarse."""
    status = os.stat(path)
    while 0 <= time.time() - status.st_mtime < CLOCK_TICK:
        time.sleep(CLOCK_TICK)
        status = os.stat(path)
    return status


def _with_those_above(root: str) -> frozenset[tuple[int, int]]:
    path = os.path.realpath(root)
    above = {_identity(path)}
    while (parent := os.path.dirname(path)) != path:
        path = parent
        above.add(_identity(path))
    return frozenset(above)


def _local_files(root: str, folder: str, counts: Counts) -> Iterator[tuple[str, str]]:
    """Files that are not hidden: the folder relative to the root, with a slash at its end, and the name."""
    above = _with_those_above(root)
    # A stack and not recursion, which has a limit. With each folder go those above it.
    stack = [(f'{folder}{os.sep}', above)] if folder else [('', above - {_identity(root)})]
    while stack:
        parent, above = stack.pop()
        path = os.path.join(root, parent)
        status = _settled(path)
        identity = status.st_dev, status.st_ino
        if identity in above:
            counts.loops.append(parent.rstrip(os.sep))
            continue
        above = above | {identity}
        counts.folders[parent] = status.st_mtime_ns
        with os.scandir(path) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith('.'):
                    counts.hidden += 1
                elif (kind := _kind(entry)) == FILE:
                    yield parent, name
                elif kind == FOLDER:
                    stack.append((f'{parent}{name}{os.sep}', above))
                else:
                    counts.left_out[NO_FILE] += 1


def _remote_files(root: str, folder: str, counts: Counts) -> Iterator[tuple[str, str]]:
    backend = get_file_backend(root, enable_singleton=True)
    start = backend.join_path(root, folder) if folder else root
    prefix = f'{folder}/' if folder else ''
    for path in backend.list_dir_or_file(start, list_dir=False, recursive=True):
        parent, slash, name = path.rpartition('/')
        if any(part.startswith('.') for part in path.split('/')):
            counts.hidden += 1
        else:
            yield prefix + parent + slash, name
