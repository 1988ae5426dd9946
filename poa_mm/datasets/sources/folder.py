"""Images that are files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine import fileio

from ..listing import SUFFIXES, Counts, class_folders, iter_images
from .base import ImageSource
from .index_file import Index, cache_folder, open_or_build, pack_texts
from .progress import ProgressLog

KEEP_ABOVE = 20_000  # images; shorter lists are made again each time, in the wink of an eye


class FileSource(ImageSource):
    """Files by their paths below a folder.

    Args:
        root: The folder, or a URL of one of mmengine's storage backends.
        index: ``paths`` relative to it as packed texts, and ``labels``, if there are some.
        classes: Names of the labels. Default: they have none.
    """

    are_files = True

    def __init__(self, root: str | os.PathLike, index: Index, classes: Sequence[str] | None = None):
        self.root = os.path.expanduser(os.fspath(root))
        self.index = index
        self.classes = classes
        self.labelled = 'labels' in index.arrays
        self.digest = index.meta['digest']
        self.left_out = index.meta.get('left_out', {})

    def __len__(self) -> int:
        return len(self.index['paths_ends'])

    def key(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f'image {index} of {len(self)}')
        return self.index.text('paths', index)

    def name(self, index: int) -> str:
        path = self.key(index)
        return f'{self.root.rstrip("/")}/{path}' if '://' in self.root else os.path.join(self.root, path)

    def read(self, index: int) -> bytes:
        return fileio.get(self.name(index))

    def label(self, index: int) -> int | None:
        return int(self.index['labels'][index]) if self.labelled else None

    @staticmethod
    def packed(paths: Sequence[bytes], labels: Sequence[int] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Metadata and arrays of an index of these paths."""
        arrays = pack_texts('paths', paths)
        digest = hashlib.sha256(arrays['paths'].data)
        digest.update(arrays['paths_ends'].data)
        if labels is not None:
            arrays['labels'] = np.asarray(labels, np.int64)
        return dict(digest=digest.hexdigest()), arrays


class FolderSource(FileSource):
    """The images below a folder, in the order of their paths.

    A long list is kept in an index file, which holds the times of all folders below the root: when one of them
    changes (a file came, went or was renamed), the list is made again.

    Args:
        root: The folder, or a URL.
        classes: Names of the folders in ``root`` whose images count, in the order of their labels.
            Default: there are no labels, and all images count.
        suffixes: Of images, in lower case. Default: all that can be decoded.
        cache_dir: Where the index file goes. Default: see :func:`~poa_mm.datasets.sources.index_file.cache_folder`.

    Attributes:
        counts (str): What was found and what left out, in words.
        empty (list[str]): Classes without images.
        loops (list[str]): Links to a folder above, which were not followed.

    Raises:
        OSError: If the folder, or one below, is missing or cannot be read.
        ValueError: If there is no image.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        classes: Sequence[str] | None = None,
        suffixes: Sequence[str] = SUFFIXES,
        cache_dir: str | os.PathLike | None = None,
    ):
        self.root, self.classes = os.path.expanduser(os.fspath(root)), classes
        key = hashlib.sha256(os.fsencode(repr((os.path.realpath(self.root), classes, sorted(suffixes)))))
        path = cache_folder(cache_dir) / f'folder-{key.hexdigest()[:16]}.index'
        local = '://' not in self.root
        built = None if local and path.is_file() else self._build(suffixes, KEEP_ABOVE if local else None)
        index = Index(*built) if built else open_or_build(path, self._is_fresh, lambda: self._build(suffixes))
        super().__init__(root, index, classes)
        self.counts = index.meta['counts']
        self.empty = index.meta['empty']
        self.loops = index.meta['loops']

    def _is_fresh(self, index: Index) -> bool:
        """Whether no folder has changed since the list was made."""
        try:
            return all(
                os.stat(os.path.join(self.root, index.text('folders', number))).st_mtime_ns == time
                for number, time in enumerate(index['times'])
            )
        except OSError:
            return False

    def _build(
        self, suffixes: Sequence[str], stop_after: int | None = None
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
        """Metadata and arrays of the index; None if there are more images than ``stop_after``."""
        counts = Counts()
        numbers = None if self.classes is None else {name: label for label, name in enumerate(self.classes)}
        folders = [''] if numbers is None else [name for name in class_folders(self.root, counts) if name in numbers]
        progress = ProgressLog(f'listing {self.root}')
        paths: list[bytes] = []
        labels: list[int] = []
        for folder in folders:
            part = []
            for path in iter_images(self.root, counts, suffixes, folder):
                part.append(path)
                if not len(part) % 1024:
                    progress.update(len(paths) + len(part))
                    if stop_after is not None and len(paths) + len(part) > stop_after:
                        return None
            part.sort()
            paths += map(os.fsencode, part)
            labels += [] if numbers is None else [numbers[folder]] * len(part)
        if stop_after is not None and len(paths) > stop_after:
            return None
        if not paths:
            raise ValueError(f'no images in {self.root}: {counts}')
        meta, arrays = self.packed(paths, None if numbers is None else labels)
        found = set(labels)
        empty = [] if numbers is None else [name for name in numbers if numbers[name] not in found]
        arrays |= pack_texts('folders', list(map(os.fsencode, counts.folders)))
        arrays['times'] = np.array(list(counts.folders.values()), np.int64)
        meta |= dict(left_out=dict(counts.left_out), counts=str(counts), loops=counts.loops, empty=sorted(empty))
        return meta, arrays
