"""What a run needs on the disk, looked for before the run starts."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS

from .data_contents import check_coco_file, check_contents, classes_of, joined

PARTS = ('train', 'val', 'test')


def check_data(cfg: Config, parts: Sequence[str] = PARTS) -> None:
    """Check that the folders and annotation files that a config names exist, and hold what it says.

    Looks at ``data_root``, ``ann_file`` and ``data_prefix`` of the datasets, wrapped ones included, joined as
    mmengine joins them, and at ``ann_file`` of the evaluators. Left out are URLs, storage other than the local
    disk, and datasets that download themselves.

    Args:
        cfg: Config of a run.
        parts: Which of ``'train'``, ``'val'`` and ``'test'`` the run uses. Default: all.

    Raises:
        FileNotFoundError: If anything is missing; lists all of it by its key in the config, and says what to do.
        ValueError: If a part is unknown, or files do not match the config, as
            :func:`~poa_mm.engine.data_contents.check_contents` finds.
    """
    if unknown := set(parts) - set(PARTS):
        raise ValueError(f'{", ".join(map(repr, sorted(unknown)))} is not one of {", ".join(PARTS)}')
    missing: dict[str, str] = {}
    local: list[tuple[str, Mapping[str, Any], Any]] = []  # data sets with their keys and classes
    metrics: list[tuple[str, Mapping[str, Any]]] = []
    for part in parts:
        with DATASETS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
            for key, dataset in _nested(f'{part}_dataloader', cfg.get(f'{part}_dataloader'), ('dataset', 'datasets')):
                kind = _kind(dataset, registry)
                if not _brings_its_own(dataset, kind):
                    missing |= _missing(key, dataset)
                    local.append((key, dataset, kind))
        for key, metric in _nested(f'{part}_evaluator', cfg.get(f'{part}_evaluator'), ('metrics',)):
            missing |= _missing(key, {'ann_file': metric.get('ann_file')})
            metrics.append((key, metric))
    if missing:
        listed = '; '.join(f'{key} = {path} ({Path(path).expanduser().absolute()})' for key, path in missing.items())
        raise FileNotFoundError(
            f'the config names data that is not there: {listed}. Put or link the data there, or say where it is: '
            f'--cfg-options {next(iter(missing))}=PATH'
        )
    num_classes = ((cfg.get('model') or {}).get('head') or {}).get('num_classes')
    for key, dataset, kind in local:
        check_contents(key, dataset, kind, num_classes if isinstance(num_classes, int) else None)
    _check_metrics(metrics, local)


def _check_metrics(
    metrics: Sequence[tuple[str, Mapping[str, Any]]], datasets: Sequence[tuple[str, Mapping[str, Any], Any]]
) -> None:
    """The annotations of mmdet's metrics have the classes of the data set that they score."""
    for key, metric in metrics:
        part = key.split('_evaluator')[0]
        scored = [one for one in datasets if one[0].startswith(f'{part}_dataloader')]
        classes = classes_of(*scored[-1][1:]) if scored else None
        path = joined({}, metric.get('ann_file'))
        if metric.get('type') in ('CocoMetric', 'mmdet.CocoMetric') and classes and path and Path(path).is_file():
            check_coco_file(f'{key}.ann_file', path, classes)


def _nested(key: str, config: Any, inner: tuple[str, ...]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A config, those in a list of configs, and those below its keys ``inner``, each with its name."""
    if isinstance(config, Mapping):
        yield key, config
        for name in inner:
            yield from _nested(f'{key}.{name}', config.get(name), inner)
    elif isinstance(config, (list, tuple)):
        for index, item in enumerate(config):
            yield from _nested(f'{key}.{index}', item, inner)


def _kind(dataset: Mapping[str, Any], registry: Any) -> Any:
    """The class of a data set, or None if it is not known."""
    kind = dataset.get('type')
    return registry.get(kind) if isinstance(kind, str) else kind


def _brings_its_own(dataset: Mapping[str, Any], kind: Any) -> bool:
    """Whether a dataset downloads what is missing, or is not read from the local disk."""
    if (dataset.get('backend_args') or {}).get('backend', 'local') != 'local':
        return True
    download = inspect.signature(kind).parameters.get('download') if kind else None
    return download is not None and dataset.get('download', download.default) is True


def missing_paths(key: str, dataset: Mapping[str, Any]) -> dict[str, str]:
    """Paths of a dataset's config that are not there, by their keys in the config; see :func:`check_data`."""
    with DATASETS.switch_scope_and_registry(None) as registry:
        return {} if _brings_its_own(dataset, _kind(dataset, registry)) else _missing(key, dataset)


def _missing(key: str, config: Mapping[str, Any]) -> dict[str, str]:
    """The paths of a dataset that do not exist, by their keys; a missing ``data_root`` stands for all below it."""
    root = config.get('data_root') or ''
    prefixes = config.get('data_prefix') or {}
    paths = {'ann_file': config.get('ann_file')}
    if isinstance(prefixes, Mapping):
        paths |= {f'data_prefix.{name}': prefix for name, prefix in prefixes.items()}
    else:
        paths['data_prefix'] = prefixes
    paths = {name: path for name, path in paths.items() if path and isinstance(path, str)}

    missing = {}
    for name, path in (paths or {'data_root': ''}).items():
        if root and not Path(path).expanduser().is_absolute() and '://' not in path:
            name, path = (name, os.path.join(root, path)) if _exists(root) else ('data_root', root)
        if path and not _exists(path):
            missing[f'{key}.{name}'] = path
    return missing


def _exists(path: str) -> bool:
    return '://' in path or Path(path).expanduser().exists()
