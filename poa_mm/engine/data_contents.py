"""What is in a run's files, compared with its config before the run starts.

Knows the data sets of the libraries by the names of their classes, so that none has to be there.
"""

from __future__ import annotations

import inspect
import json
import logging
import mmap
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import print_log
from PIL import Image

from poa_mm.datasets.classes import difference, few

LOOKED_AT = 8  # label maps, evenly spread
FILES_LOOKED_FOR = 100  # of those that a list names, evenly spread
IGNORED = 255  # label of pixels that don't count


def check_contents(key: str, dataset: Mapping[str, Any], kind: type | None, num_classes: int | None = None) -> None:
    """Check the files of a data set, which are there.

    - COCO: the categories are the config's classes, in the same order.
    - Segmentation: there are images of ``img_suffix``, each with its label map; labels are below the number of classes.
    - Classification by a list: labels are numbers below the number of classes; the files of the list are there.

    Args:
        key: Of the data set in the config.
        dataset: Its config.
        kind: Its class.
        num_classes: Classes of the head that it trains. Default: not known.

    Raises:
        ValueError: If something does not match; names the file, both values and what to set.
    """
    names = {one.__name__ for one in getattr(kind, '__mro__', ())}
    if 'CocoDataset' in names and 'LVISV05Dataset' not in names:
        _check_coco(key, dataset, kind)
    elif 'BaseSegDataset' in names:
        _check_segmentation(key, dataset, kind)
    elif names & {'CustomDataset', 'ImageFolder'} and dataset.get('with_label', True):
        _check_list(key, dataset, num_classes)


def check_coco_file(key: str, path: str, classes: Sequence[str]) -> None:
    """Check that the categories of a COCO file are ``classes``, in the same order: mmdet numbers them by the file's.

    Categories that the config leaves out are warned of.

    Args:
        key: What to call the file.
        path: The file.
        classes: Of the config.

    Raises:
        ValueError: If they are not.
    """
    found = _categories(path)
    if not found:
        return  # mmdet says what is wrong with such a file
    used = [name for name in found if name in set(classes)]
    if len(used) < len(classes):
        raise ValueError(
            f'{key} = {path} has other categories than metainfo.classes ({difference(classes, found)}): images would '
            f'lose their boxes without a word. Its categories are {few(found)}.'
        )
    if used != list(classes):
        raise ValueError(
            f'{key} = {path} has its categories in another order than metainfo.classes ({difference(classes, used)}), '
            f'and labels go by the order of the file: write classes={tuple(used)}'
        )
    if left_out := [name for name in found if name not in set(classes)]:
        print_log(
            f'{path}: the categories {few(left_out)} are not in metainfo.classes, and left out',
            'current',
            logging.WARNING,
        )


def classes_of(dataset: Mapping[str, Any], kind: type | None) -> list[str] | None:
    """Names of the classes that a config of a data set, or else its class, says."""
    classes = (dataset.get('metainfo') or {}).get('classes', (getattr(kind, 'METAINFO', None) or {}).get('classes'))
    if isinstance(classes, str):
        path = Path(classes)
        return path.read_text().splitlines() if path.is_file() else [classes]
    return list(map(str, classes)) if classes else None


def joined(dataset: Mapping[str, Any], path: str | None) -> str | None:
    """A path as mmengine joins it with ``data_root``; None for what is not on the disk."""
    if not isinstance(path, str) or '://' in path or '://' in (root := dataset.get('data_root') or ''):
        return None
    return os.path.expanduser(path if os.path.isabs(path) else os.path.join(root, path))


def _prefix(dataset: Mapping[str, Any], name: str) -> str | None:
    prefix = dataset.get('data_prefix') or ''
    return joined(dataset, prefix.get(name, '') if isinstance(prefix, Mapping) else prefix)


# --- COCO ------------------------------------------------------------------------------------
def _check_coco(key: str, dataset: Mapping[str, Any], kind: type | None) -> None:
    path, classes = joined(dataset, dataset.get('ann_file')), classes_of(dataset, kind)
    if path is None or classes is None or not os.path.isfile(path):
        return
    check_coco_file(f'{key}.ann_file', path, classes)
    folder = _prefix(dataset, 'img')
    names = _first_file_names(path)
    if folder is not None and names and not any(os.path.exists(os.path.join(folder, name)) for name in names):
        raise ValueError(f'{key}.ann_file = {path} names images such as {names[0]}, which are not in {folder}')


def _categories(path: str) -> list[str]:
    """Names of a COCO file's categories in its order, without reading the hundreds of megabytes beside them."""
    for start in _places(path, rb'"categories"\s*:\s*(?=\[)'):
        try:
            found, _ = json.JSONDecoder().raw_decode(start.decode(errors='ignore'))
        except ValueError:
            continue
        if found and all(isinstance(one, dict) and 'name' in one for one in found):
            return [str(one['name']) for one in found]
    return []


def _first_file_names(path: str, number: int = 20) -> list[str]:
    with open(path, 'rb') as file:
        start = file.read(2**20)
    names = re.findall(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")', start)[:number]
    return [json.loads(name) for name in names]


def _places(path: str, pattern: bytes, size: int = 2**24) -> Iterator[bytes]:
    """What follows each match of a pattern in a file, up to ``size`` bytes."""
    if os.path.getsize(path):
        with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for match in re.finditer(pattern, content):
                yield content[match.end() : match.end() + size]


# --- segmentation ----------------------------------------------------------------------------
def _check_segmentation(key: str, dataset: Mapping[str, Any], kind: type) -> None:
    images, maps = _prefix(dataset, 'img_path'), _prefix(dataset, 'seg_map_path')
    prefixes = dataset.get('data_prefix') or {}
    if images is None or not os.path.isdir(images) or dataset.get('ann_file'):
        return
    suffixes = {name: _default(kind, dataset, name) for name in ('img_suffix', 'seg_map_suffix')}
    if not all(isinstance(suffix, str) for suffix in suffixes.values()):
        return
    found = _files(images)
    named = sorted(name for name in found if name.endswith(suffixes['img_suffix']))
    if not named:
        raise ValueError(
            f'{key}: no file in {images} ends in img_suffix={suffixes["img_suffix"]!r}; there are {_by_suffix(found)}'
        )
    if not (prefixes.get('seg_map_path') if isinstance(prefixes, Mapping) else None) or not os.path.isdir(maps):
        return
    wanted = {name: name[: -len(suffixes['img_suffix'])] + suffixes['seg_map_suffix'] for name in named}
    there = _files(maps)
    missing = [name for name in named if wanted[name] not in there]
    if missing:
        raise ValueError(
            f'{key}: {len(missing)} of {len(named)} images have no label map: that of {missing[0]} would be '
            f'{os.path.join(maps, wanted[missing[0]])} (seg_map_suffix={suffixes["seg_map_suffix"]!r}); there are '
            f'{_by_suffix(there)}'
        )
    classes = classes_of({}, kind) or classes_of(dataset, kind)  # a config may choose from those of a class
    if classes is not None:
        zero = bool(_default(kind, dataset, 'reduce_zero_label'))
        ignored = _default(kind, dataset, 'ignore_index')
        for name in _spread(named, LOOKED_AT):
            _check_label_map(key, os.path.join(maps, wanted[name]), len(classes) + zero, {ignored, IGNORED})


def _check_label_map(key: str, path: str, number: int, ignored: set[int]) -> None:
    with Image.open(path) as file:
        values = np.asarray(file)
    if values.ndim != 2:
        raise ValueError(f'{key}: the label map {path} has {values.shape[2]} channels; it should have one, of labels')
    high = [int(value) for value in np.unique(values) if value >= number and int(value) not in ignored]
    if high:
        raise ValueError(
            f'{key}: the label map {path} has the labels {", ".join(map(str, high[:5]))}, and by metainfo.classes they '
            f'end at {number - 1}'
        )


def _default(kind: type, dataset: Mapping[str, Any], name: str) -> Any:
    """An argument of a data set: of the config, or the default of its class or of those that it derives from."""
    if name in dataset:
        return dataset[name]
    for one in kind.__mro__:
        parameter = inspect.signature(one).parameters.get(name) if '__init__' in vars(one) else None
        if parameter is not None and parameter.default is not inspect.Parameter.empty:
            return parameter.default
    return None


def _files(folder: str) -> set[str]:
    """Files below a folder, relative to it, as mmengine lists them."""
    found = set()
    for parent, _, names in os.walk(folder, followlinks=True):
        relative = os.path.relpath(parent, folder)
        found.update(name if relative == '.' else os.path.join(relative, name) for name in names if name[0] != '.')
    return found


def _by_suffix(names: set[str]) -> str:
    counts = Counter(os.path.splitext(name)[1] or 'without suffix' for name in names)
    return ', '.join(f'{number} {suffix}' for suffix, number in counts.most_common(5)) or 'none at all'


# --- classification --------------------------------------------------------------------------
def _check_list(key: str, dataset: Mapping[str, Any], num_classes: int | None) -> None:
    path = joined(dataset, dataset.get('ann_file') or None)
    if path is None or not os.path.isfile(path):
        return
    lines = [line.strip() for line in Path(path).read_text(encoding='utf-8').splitlines() if line.strip()]
    if not lines:
        raise ValueError(f'{key}.ann_file = {path} is empty')
    pairs = [line.rsplit(maxsplit=1) for line in lines]
    wrong = next((line for line, pair in zip(lines, pairs) if len(pair) < 2 or not pair[1].isdecimal()), None)
    if wrong is not None:
        raise ValueError(f'{key}.ann_file = {path}: {wrong!r} does not end in a blank and the number of a class')
    classes = dataset.get('classes') or (dataset.get('metainfo') or {}).get('classes')
    limits = [
        number for number in (num_classes, len(classes) if isinstance(classes, (list, tuple)) else None) if number
    ]
    highest = max(pairs, key=lambda pair: int(pair[1]))
    if limits and int(highest[1]) >= min(limits):
        raise ValueError(
            f'{key}.ann_file = {path} has the label {highest[1]} ({highest[0]}); with {min(limits)} classes, labels '
            f'end at {min(limits) - 1}'
        )
    folder = _prefix(dataset, 'img_path')
    if folder is not None:
        gone = [name for name, _ in _spread(pairs, FILES_LOOKED_FOR) if not os.path.exists(os.path.join(folder, name))]
        if gone:
            raise ValueError(f'{key}.ann_file = {path} names {gone[0]}, which is not in {folder}')


def _spread(items: Sequence[Any], number: int) -> list[Any]:
    """So many of the items, evenly spread, or all."""
    if len(items) <= number:
        return list(items)
    return [items[round(index)] for index in np.linspace(0, len(items) - 1, number)]
