"""From what a user types to images."""

from __future__ import annotations

import os
from typing import Any

from ..listing import BAND_SUFFIXES, class_folders
from .arrow import ArrowSource
from .base import ImageSource
from .folder import FolderSource
from .tar import TarSource

SAVED = ('state.json', 'dataset_dict.json')  # of `save_to_disk`
TABLES = ('.parquet', '.arrow')


def guess_dataset(path: str) -> dict[str, Any]:
    """Settings of the data set that reads what is there.

    Args:
        path: A folder of images; a folder of tar files, one of them, or a pattern such as
            ``DIR/train-{000000..000127}.tar``; what ``save_to_disk`` has written, or a folder or file of Parquet or
            Arrow.

    Returns:
        ``type`` and where the images are.

    Raises:
        FileNotFoundError: If there is nothing.
        ValueError: If it could be two things.
    """
    path = os.path.expanduser(path)
    folder, name = os.path.split(path)
    if name.endswith('.tar') and not os.path.isdir(path):
        return dict(type='TarImages', data_root=folder or '.', shards=name)
    if os.path.isfile(path) and path.endswith(TABLES):
        return dict(type='HuggingFaceImages', data_root=path)
    if '://' not in path and not os.path.isdir(path):
        raise FileNotFoundError(f'{path} is no folder; also read are DIR/*.tar and files of .parquet or .arrow')
    if any(os.path.isfile(os.path.join(path, name)) for name in SAVED) or _holds(path, *TABLES):
        return dict(type='HuggingFaceImages', data_root=path)
    if _holds(path, '.tar'):
        if _holds(path, *BAND_SUFFIXES):
            raise ValueError(f'{path} holds tar files and images; {path}/*.tar means the tar files')
        return dict(type='TarImages', data_root=path, shards='*.tar')
    return dict(type='ImageFolder', data_prefix=path)


def guess_source(
    path: str,
    labels: bool = False,
    split: str = 'train',
    cache_dir: str | os.PathLike | None = None,
) -> ImageSource:
    """Open a folder of images, shards or a data set of Hugging Face, whichever it is; ``.npy`` files count.

    Args:
        path: As for :func:`guess_dataset`.
        labels: Whether the folders in a folder of images are classes. Default: False.
        split: Of a data set of Hugging Face. Default: 'train'.
        cache_dir: Where index files go. Default: see :func:`~poa_mm.datasets.sources.index_file.cache_folder`.

    Raises:
        FileNotFoundError: As :func:`guess_dataset`.
        ValueError: As :func:`guess_dataset`, or if there are no images.
    """
    found = guess_dataset(path)
    kind = found['type']
    if kind == 'TarImages':
        return TarSource(found['data_root'], found['shards'], BAND_SUFFIXES, cache_dir=cache_dir)
    if kind == 'HuggingFaceImages':
        return ArrowSource(found['data_root'], split)
    root = found['data_prefix']
    return FolderSource(root, class_folders(root) if labels else None, BAND_SUFFIXES, cache_dir=cache_dir)


def _holds(folder: str, *suffixes: str) -> bool:
    """Whether files with such a suffix are directly in a folder; tables may be in its ``data``, as on the Hub."""
    folders = [folder, os.path.join(folder, 'data')] if suffixes == TABLES else [folder]
    for folder in filter(os.path.isdir, folders):
        with os.scandir(folder) as entries:
            if any(entry.name.lower().endswith(suffixes) and not entry.name.startswith('.') for entry in entries):
                return True
    return False
