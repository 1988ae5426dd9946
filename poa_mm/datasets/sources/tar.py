"""Images that are read in place from tar files."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, OrderedDict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from multiprocessing import current_process, get_context
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import print_log

from .base import ImageSource
from .index_file import cache_folder, open_or_build, pack_texts
from .progress import ProgressLog
from .shards import NO_LABEL, Contents, ShardError, find_shards, read_contents

MAX_OPEN = 256  # shards a process holds open; others are opened again
MAX_PROCESSES = 16
CLASSES = 'classes.txt'  # beside the shards: a name a line


class TarSource(ImageSource):
    """Images of uncompressed tar files, found by their offset: any image in any order, at the cost of one read.

    Args:
        root: Folder of the shards. Where it holds ``classes.txt``, that has the names of the numbered classes.
        shards: Their names, as for :func:`~poa_mm.datasets.sources.shards.find_shards`. Default: all tar files.
        suffixes: Of images, in lower case, with their dots.
        image: What of a sample's files is the image, such as 'jpg'. Default: the one with a suffix of images.
        label: ``'cls'``, ``'txt'`` or ``'json.KEY'``: what of a sample is its class, a number or a name.
            Default: 'cls'.
        cache_dir: Where the index file goes. Default: see :func:`~poa_mm.datasets.sources.index_file.cache_folder`.

    Raises:
        ShardError: If shards are missing, compressed, truncated or damaged; names them.
        ValueError: If there are no images, or classes are numbers and names.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        shards: str | Sequence[str] = '*.tar',
        suffixes: Sequence[str] = (),
        image: str | None = None,
        label: str = 'cls',
        cache_dir: str | os.PathLike | None = None,
    ):
        if label.partition('.')[0] not in ('cls', 'txt', 'json') or (label.startswith('json') and '.' not in label):
            raise ValueError(f"label {label!r} is none of 'cls', 'txt' and 'json.KEY'")
        paths = find_shards(root, shards)
        read = partial(read_contents, suffixes=frozenset(suffixes), image=image, label=label)
        stamp = _stamp(paths)
        key = hashlib.sha256(repr((os.path.abspath(root), shards, sorted(suffixes), image, label)).encode())
        self.index = open_or_build(
            cache_folder(cache_dir) / f'tar-{key.hexdigest()[:16]}.index',
            is_fresh=lambda index: index.meta.get('stamp') == stamp,
            build=lambda: _build(paths, read, stamp),
        )
        self.paths, self.stamp = paths, stamp
        self.digest = self.index.meta['digest']
        self.left_out = self.index.meta['left_out']
        self.labelled = self.index.meta['labelled']
        self.classes = self.index.meta['classes'] or _named_classes(Path(root).expanduser() / CLASSES)
        self._check_labels(root)
        self._open: OrderedDict[int, int] = OrderedDict()  # shard -> descriptor

    def _check_labels(self, root: str | os.PathLike) -> None:
        highest = self.index.meta['highest_label']
        if self.classes is not None and highest >= len(self.classes):
            raise ValueError(
                f'{Path(root) / CLASSES} names {len(self.classes)} classes; the shards have class {highest}'
            )

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__, _open=OrderedDict())

    def __len__(self) -> int:
        return len(self.index['offsets'])

    def name(self, index: int) -> str:
        return f'{self.paths[self._shard(index)]}/{self.key(index)}'

    def key(self, index: int) -> str:
        return self.index.text('names', index)

    def read(self, index: int) -> bytes:
        size, offset = int(self.index['sizes'][index]), int(self.index['offsets'][index])
        content = os.pread(self._descriptor(self._shard(index)), size, offset)
        if len(content) < size:
            raise OSError(f'{self.name(index)}: {len(content)} bytes where {size} should be; has the shard changed?')
        return content

    def label(self, index: int) -> int | None:
        label = int(self.index['labels'][index])
        return None if label == NO_LABEL else label

    def _shard(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f'image {index} of {len(self)}')
        return int(np.searchsorted(self.index['shard_ends'], index, side='right'))

    def _descriptor(self, shard: int) -> int:
        """An open file; that pread gives no position to share, so forked processes may use the same."""
        if shard in self._open:
            self._open.move_to_end(shard)
        else:
            self._open[shard] = os.open(self.paths[shard], os.O_RDONLY)
            if len(self._open) > MAX_OPEN:
                os.close(self._open.popitem(last=False)[1])
        return self._open[shard]

    def __del__(self):
        for descriptor in self.__dict__.get('_open', {}).values():
            os.close(descriptor)


def _stamp(paths: Sequence[Path]) -> str:
    """What changes when a shard does: hash of names, sizes and times."""
    found = [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in ((path, path.stat()) for path in paths)]
    return hashlib.sha256(repr(found).encode()).hexdigest()


def _named_classes(path: Path) -> list[str] | None:
    return path.read_text().splitlines() if path.is_file() else None


def _build(paths: Sequence[Path], read: partial, stamp: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    shards = _read_all(paths, read)
    failed = [f'{path} {contents.error}' for path, contents in zip(paths, shards) if contents.error]
    if failed:
        more = f'; and {len(failed) - 5} more' if len(failed) > 5 else ''
        raise ShardError(f'{len(failed)} of {len(paths)} shards cannot be used: {"; ".join(failed[:5])}{more}')
    names = [name for contents in shards for name in contents.names]
    left_out = sum((contents.left_out for contents in shards), Counter())
    if not names:
        raise ValueError(f'no images in {paths[0]} and the other of {len(paths)} shards; left out: {dict(left_out)}')
    labels, classes = _numbered([label for contents in shards for label in contents.labels])
    counts = [len(contents.names) for contents in shards]
    texts = pack_texts('names', names)
    digest = hashlib.sha256(texts['names'].data)
    digest.update(texts['names_ends'].data)
    print_log(
        f'{len(names):,} images in {len(paths):,} shards; left out: {dict(left_out) or "nothing"}', logger='current'
    )
    meta = dict(
        stamp=stamp,
        digest=digest.hexdigest(),
        left_out=dict(left_out),
        classes=classes,
        highest_label=int(labels.max()),
        labelled=bool((labels != NO_LABEL).all()),
    )
    return meta, dict(
        texts,
        offsets=np.concatenate([np.array(contents.offsets, np.int64) for contents in shards]),
        sizes=np.concatenate([np.array(contents.sizes, np.int64) for contents in shards]),
        labels=labels,
        shard_ends=np.cumsum(counts, dtype=np.int64),
    )


def _read_all(paths: Sequence[Path], read: partial) -> list[Contents]:
    progress = ProgressLog('reading the headers of shards', len(paths), 'shards')
    processes = min(len(os.sched_getaffinity(0)), len(paths), MAX_PROCESSES)
    shards = []
    with ExitStack() as stack:
        each = map
        if processes > 1 and not current_process().daemon:  # which may have no children
            each = stack.enter_context(ProcessPoolExecutor(processes, mp_context=get_context('fork'))).map
        for contents in each(read, paths):
            shards.append(contents)
            progress.update(len(shards))
    return shards


def _numbered(labels: Sequence[int | str | None]) -> tuple[np.ndarray, list[str] | None]:
    """Labels as numbers, and the names of classes that had names, which are numbered in their order.

    Raises:
        ValueError: If some are numbers and some are names.
    """
    names = sorted({label for label in labels if isinstance(label, str)})
    if not names:
        return np.array([NO_LABEL if label is None else label for label in labels], np.int64), None
    number = next((label for label in labels if isinstance(label, int)), None)
    if number is not None:
        raise ValueError(f'classes are numbers ({number}) and names ({names[0]!r}) in the same shards')
    numbers = {name: index for index, name in enumerate(names)}
    return np.array([NO_LABEL if label is None else numbers[label] for label in labels], np.int64), names
