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
    kept = {key: cfg.train_dataloader.dataset[key] for key in ('extensions',) if key in cfg.train_dataloader.dataset}
    found = guess_dataset(path)
    kept = {} if found['type'] == 'HuggingFaceImages' else kept
    cfg.train_dataloader.dataset = dict(**found, **kept, with_label=False, pipeline=pipeline)
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


def check_channels(cfg: Config) -> None:
    """Compare the bands that the training pipeline gives with those of the network, before either is built.

    Raises:
        ValueError: If the network, the mean of the data preprocessor or a colour transform takes other channels.
    """
    dataset = (cfg.get('train_dataloader') or {}).get('dataset') or {}
    pipeline = dataset.get('pipeline') or []
    load = next((step for step in pipeline if step.get('type') in ('LoadBands', 'SafeLoadImageFromFile')), None)
    backbone = (cfg.get('model') or {}).get('backbone')
    if load is None or backbone is None or load.get('color_type', 'color') != 'color':
        return
    channels = load.get('in_channels', 3)
    taken = backbone.get('in_channels', 3)
    if channels != taken:
        raise ValueError(
            f'the pipeline gives images of {channels} channels ({load["type"]}), model.backbone.in_channels is {taken}'
        )
    mean = (cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}).get('mean') or [0]
    if len(mean) not in (1, channels):
        raise ValueError(f'data_preprocessor.mean has {len(mean)} values, images have {channels} channels')
    colour = [step['type'] for step in _steps(pipeline) if _needs_colour(step)]
    if channels != 3 and colour:
        raise ValueError(
            f'{", ".join(dict.fromkeys(colour))} changes the colours of three channels, images have {channels}: leave '
            'it out, or saturation and hue of it'
        )


def _steps(pipeline: Any) -> Iterator[Mapping[str, Any]]:
    """All transforms of a pipeline, those within others included."""
    if isinstance(pipeline, Mapping):
        if 'type' in pipeline:
            yield pipeline
        yield from _steps(list(pipeline.values()))
    elif isinstance(pipeline, (list, tuple)):
        for step in pipeline:
            yield from _steps(step)


def _needs_colour(step: Mapping[str, Any]) -> bool:
    kind = step['type']
    if kind in ('FastColorJitter', 'ColorJitter'):
        return bool(step.get('saturation') or step.get('hue'))
    return kind in ('FastRandomGrayscale', 'RandomGrayscale')
