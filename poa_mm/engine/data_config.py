"""What a config says of its data, completed when a run starts: where it is, how much there is."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import all_gather_object, is_main_process
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from ..datasets.sources import guess_dataset
from ..recipes import COUNT, follow

INDICES = 'image_index'  # folder beside the work dir


def use_data(cfg: Config, path: str) -> None:
    """Train on the images at ``path``, by the pipeline that the config has; its recipe counts them.

    Args:
        cfg: A pre-training config; changed in place.
        path: As for :func:`~poa_mm.datasets.sources.guess_dataset`.

    Raises:
        FileNotFoundError, ValueError: As :func:`~poa_mm.datasets.sources.guess_dataset`; also if the config has no
            training data set.
    """
    try:
        pipeline = cfg.train_dataloader.dataset.pipeline
    except AttributeError:
        raise ValueError('the config has no train_dataloader.dataset.pipeline, by which --data could be read') from None
    cfg.train_dataloader.dataset = dict(**guess_dataset(path), with_label=False, pipeline=pipeline)
    if 'recipe' in cfg and cfg.recipe.get('epochs') is not None:
        follow(cfg, images=COUNT)


def place_indices(cfg: Config) -> None:
    """Let the index files of the config's data sets lie beside the work dir, where nothing else is said."""
    folder = Path(cfg.get('work_dir') or 'work_dirs/x').parent / INDICES
    with DATASETS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
        for dataset in _datasets(cfg):
            kind = dataset['type']
            kind = registry.get(kind) if isinstance(kind, str) else kind
            if kind is not None and 'cache_dir' in inspect.signature(kind).parameters:
                dataset.setdefault('cache_dir', str(folder))


def _datasets(cfg: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Configs of data sets, wherever in a config: entries ``dataset`` with a type."""
    for key, value in cfg.items():
        if isinstance(value, Mapping):
            if key == 'dataset' and 'type' in value:
                yield value
            yield from _datasets(value)


def count_images(cfg: Config) -> None:
    """Turn a recipe's epochs of the images that are there into iterations; other recipes stay as they are.

    Args:
        cfg: A pre-training config; changed in place. All processes must call this.

    Raises:
        ValueError: If there are no images, or processes see different numbers of them.
        OSError: If the data is missing.
    """
    if 'recipe' not in cfg or cfg.recipe.get('images') != COUNT:
        return
    dataset = dict(cfg.train_dataloader.dataset)
    if 'pipeline' in dataset:
        dataset['pipeline'] = []
    with DATASETS.switch_scope_and_registry(cfg.get('default_scope')):
        number = len(DATASETS.build(dataset))
    numbers = all_gather_object(number)
    if len(set(numbers)) > 1:
        raise ValueError(f'the processes see different numbers of images: {sorted(set(numbers))}')
    follow(cfg, images=number)
    if is_main_process():
        recipe = cfg.recipe
        print_log(
            f'{number:,} images are there: {recipe.epochs} epochs of them are {cfg.train_cfg.max_iters:,} iterations '
            f'of {recipe.batch_size} images a process',
            logger='current',
        )
