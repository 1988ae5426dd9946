"""Images of Hugging Face's ``datasets``: Arrow files that all processes map."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from .base import ImageSource

BATCH = 100_000  # labels looked at together


class ArrowSource(ImageSource):
    """Images of a data set on this machine that ``datasets`` opens: nothing is downloaded.

    Args:
        path: What ``save_to_disk`` has written, or a folder (or file) of Parquet, Arrow or images. Of the latter,
            ``datasets`` makes Arrow files in its own cache (``HF_DATASETS_CACHE``), once.
        split: Which part. Default: 'train'.
        image_key: Column of the images. Default: the only one of that kind.
        label_key: Column of the classes, numbers. Default: the only ``ClassLabel``, if there is one.

    Raises:
        ModuleNotFoundError: If ``datasets`` is not installed; says the command.
        OSError: If there is nothing to open.
        ValueError: If there is no such split, no such column, or no image.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        split: str = 'train',
        image_key: str | None = None,
        label_key: str | None = None,
    ):
        self.path, self.split = Path(path).expanduser(), split
        table = _opened(self.path, split)
        self.image_key = _column(table.features, image_key, 'Image', 'image_key', needed=True)
        self.label_key = _column(table.features, label_key, 'ClassLabel', 'label_key', needed=False)
        if not len(table):
            raise ValueError(f'no images in {self.path}, split {split!r}')
        self._images = table.select_columns([self.image_key]).cast_column(self.image_key, _image_feature())
        files = [(Path(file['filename']).name, os.stat(file['filename'])) for file in table.cache_files]
        sizes = [(name, there.st_size) for name, there in files]
        self.digest = hashlib.sha256(repr((len(table), sizes)).encode()).hexdigest()
        self.stamp = hashlib.sha256(repr([there.st_mtime_ns for _, there in files]).encode()).hexdigest()
        if self.label_key is not None:
            self._labels = table.select_columns([self.label_key])
            self.classes = getattr(table.features[self.label_key], 'names', None)
            self.labelled = _all_labelled(self._labels, self.label_key)

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        return f'{self.path}/{self.key(index)}'

    def key(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f'image {index} of {len(self)}')
        return f'{self.split}/{index:09d}'

    def read(self, index: int) -> bytes:
        image = self._images[index][self.image_key] or {}
        if image.get('bytes') is not None:
            return image['bytes']
        if image.get('path') is None:
            raise OSError(f'{self.name(index)}: the row has no image')
        with open(image['path'], 'rb') as file:
            return file.read()

    def label(self, index: int) -> int | None:
        if self.label_key is None:
            return None
        label = self._labels[index][self.label_key]
        return None if label is None or label < 0 else int(label)


def _opened(path: Path, split: str) -> Any:
    try:
        from datasets import load_dataset, load_from_disk  # an extra, and slow to import
    except ImportError as error:  # a folder of that name is imported as an empty package
        raise ModuleNotFoundError("HuggingFaceImages needs datasets: pip install 'poa_mm[datasets]'") from error
    if not path.exists():
        raise FileNotFoundError(f'{path} is not there (data_root of HuggingFaceImages, which downloads nothing)')
    if path.is_file():
        kind = {'.parquet': 'parquet', '.arrow': 'arrow'}.get(path.suffix)
        if kind is None:
            raise ValueError(f'{path} is neither a folder nor a .parquet or .arrow file')
        return load_dataset(kind, data_files={split: str(path)}, split=split)
    saved = any((path / name).is_file() for name in ('state.json', 'dataset_dict.json'))
    found = load_from_disk(str(path)) if saved else load_dataset(str(path))
    if not isinstance(found, dict):
        return found  # saved without a split
    if split not in found:
        raise ValueError(f'{path} has no split {split!r}, but {", ".join(map(repr, found))}')
    return found[split]


def _image_feature() -> Any:
    from datasets import Image

    return Image(decode=False)


def _column(features: Any, key: str | None, kind: str, option: str, needed: bool) -> str | None:
    """The column that is meant."""
    if key is not None:
        if key not in features:
            raise ValueError(f'{option}={key!r} is not one of the columns {", ".join(map(repr, features))}')
        if kind == 'ClassLabel' and 'int' not in str(getattr(features[key], 'dtype', '')):
            raise ValueError(f'{option}={key!r} holds {features[key]}, not numbers; class_encode_column makes them')
        return key
    found = [name for name, feature in features.items() if type(feature).__name__ == kind]
    if len(found) > 1 or (needed and not found):
        raise ValueError(
            f'{len(found)} columns are {kind}s, of {", ".join(map(repr, features))}: say which, {option}=...'
        )
    return found[0] if found else None


def _all_labelled(labels: Any, key: str) -> bool:
    return all(label is not None and label >= 0 for batch in labels.iter(batch_size=BATCH) for label in batch[key])
