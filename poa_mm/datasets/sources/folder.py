"""Images that are files in a folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..listing import SUFFIXES, Counts, class_folders, iter_images
from .base import ImageSource
from .index_file import Index, cache_folder, open_or_build, pack_texts
from .progress import ProgressLog


class FolderSource(ImageSource):
    """The images below a folder, in the order of their paths.

    The list is kept in an index file, which holds the times of all folders below the root: when one of them changes
    (a file came, went or was renamed), the list is made again.

    Args:
        root: The folder.
        classes: Names of the folders in ``root`` whose images count, in the order of their labels.
            Default: there are no labels, and all images count.
        suffixes: Of images, in lower case. Default: all that can be decoded.
        cache_dir: Where the index file goes. Default: see :func:`~poa_mm.datasets.sources.index_file.cache_folder`.

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
        self.root = os.path.expanduser(os.fspath(root))
        self.classes = classes
        self.labelled = classes is not None
        real = os.path.realpath(self.root)
        key = hashlib.sha256(os.fsencode(repr((real, classes, sorted(suffixes)))))
        self.index = open_or_build(
            cache_folder(cache_dir) / f'folder-{key.hexdigest()[:16]}.index',
            is_fresh=self._is_fresh,
            build=lambda: self._build(suffixes),
        )
        self.digest = self.index.meta['digest']
        self.left_out = self.index.meta['left_out']

    def __len__(self) -> int:
        return len(self.index['paths_ends'])

    def key(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f'image {index} of {len(self)}')
        return self.index.text('paths', index)

    def name(self, index: int) -> str:
        return os.path.join(self.root, self.key(index))

    def read(self, index: int) -> bytes:
        with open(self.name(index), 'rb') as file:
            return file.read()

    def label(self, index: int) -> int | None:
        return int(self.index['labels'][index]) if self.labelled else None

    def _is_fresh(self, index: Index) -> bool:
        """Whether no folder has changed since the list was made."""
        try:
            return all(
                os.stat(os.path.join(self.root, index.text('folders', number))).st_mtime_ns == time
                for number, time in enumerate(index['times'])
            )
        except OSError:
            return False

    def _build(self, suffixes: Sequence[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        counts, labels, paths = Counts(), [], []
        progress = ProgressLog(f'listing {self.root}')
        folders = [''] if self.classes is None else self.classes
        if self.classes is not None:
            class_folders(self.root, counts)  # counts what lies beside the classes
        for label, folder in enumerate(folders):
            if not os.path.isdir(os.path.join(self.root, folder)) and self.labelled:
                continue  # a class of which there are no images here
            part = []
            for path in iter_images(self.root, counts, suffixes, folder):
                part.append(path)
                if not len(part) % 4096:
                    progress.update(len(paths) + len(part))
            part.sort()
            labels += [label] * len(part)
            paths += map(os.fsencode, part)
        if not paths:
            raise ValueError(f'no images in {self.root}: {counts}')
        texts = pack_texts('paths', paths)
        digest = hashlib.sha256(texts['paths'].data)
        digest.update(texts['paths_ends'].data)
        times = np.array(list(counts.folders.values()), np.int64)
        arrays = dict(texts, **pack_texts('folders', list(map(os.fsencode, counts.folders))), times=times)
        if self.labelled:
            arrays['labels'] = np.array(labels, np.int32)
        meta = dict(digest=digest.hexdigest(), left_out=dict(counts.left_out), counts=str(counts))
        return meta, arrays
