"""What has to fit in a run of any library, compared before the first step."""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.registry import TRANSFORMS
from mmengine.runner import Runner
from torch import nn

from poa_mm.datasets.classes import class_names, difference, parts_of, same_labels
from poa_mm.models import POA

from .hooks.model import model_of
from .hooks.teacher_ema_hook import TeacherEMAHook
from .preflight import missing_paths

STATES = {'Adam': 2, 'Lion': 1, 'SGD': 1}  # tensors that an optimizer keeps of each parameter, by a part of its name


def check_contracts(runner: Runner) -> None:
    """Check what a run would else find out late, or never.

    - The teacher of a pre-training, from which subnets are cut, follows the student.
    - Labels of validation mean what those of training do: classes go by name.
    - The head has a class for each label.
    - The first image of validation goes through its pipeline.
    - There is room for a checkpoint.
    - The k-NN evaluation of a pre-training, which comes after the run, can be built; data that it lacks are warned of.

    Args:
        runner: A runner that is about to train; its loops are built, if they are not yet.

    Raises:
        ValueError: If classes differ, the head has too few, a pipeline cannot work, or a teacher would not be trained.
        OSError: If the disk is too small for one checkpoint.
    """
    if runner.train_loop is None:
        return
    _check_teacher(runner)
    names = class_names(runner.train_dataloader.dataset)
    _check_number(model_of(runner), names)
    if runner.val_loop is not None:
        _check_val(runner, names)
    _check_room(runner)
    _check_knn(runner.cfg)


def check_frozen_teacher(model: nn.Module, starts_from_a_file: bool) -> None:
    """Check that a frozen teacher that is the network which the run starts from can be.

    Args:
        model: The model of a run.
        starts_from_a_file: Whether the run loads weights, or resumes.

    Raises:
        ValueError: If it cannot.
    """
    teacher = getattr(model, 'frozen_teacher', None)
    if teacher is not None and teacher.is_source and not starts_from_a_file:
        raise ValueError(
            "model.frozen_teacher='source' is the network that the run starts from, and load_from names no file; "
            'tools/warm_start.py makes one of weights that exist'
        )


def _check_teacher(runner: Runner) -> None:
    follows = any(isinstance(hook, TeacherEMAHook) for hook in runner.hooks)
    if isinstance(model_of(runner), POA) and not follows:
        raise ValueError(
            'custom_hooks lacks TeacherEMAHook: subnets are cut from the teacher, and it would stay untrained, with a '
            'frozen teacher, too'
        )


def check_recorded_classes(meta: Mapping[str, Any], dataset: Any, checkpoint: str, key: str) -> None:
    """Check that labels mean what they did in the run that wrote a checkpoint.

    Args:
        meta: What the checkpoint says of its run; nothing is checked if it does not say the classes.
        dataset: What is to be read.
        checkpoint: Its name.
        key: Of the data set in the config.

    Raises:
        ValueError: If they don't.
    """
    class_names(dataset)  # no hidden folder is one
    recorded = (meta.get('dataset_meta') or {}).get('classes')
    found = (getattr(next(parts_of(dataset)), 'metainfo', None) or {}).get('classes')
    if not all(isinstance(names, (list, tuple)) for names in (recorded, found)) or same_labels(recorded, found):
        return
    raise ValueError(
        f'{key} has other classes than {checkpoint} was trained with ({difference(recorded, found)}), and labels '
        f'would mean others. {_advice(key)}'
    )


def _check_val(runner: Runner, names: Sequence[str] | None) -> None:
    dataset = runner.val_dataloader.dataset
    found = class_names(dataset)
    if not same_labels(names, found):
        raise ValueError(
            f'val_dataloader.dataset has other classes than train_dataloader.dataset ({difference(names, found)}), '
            f'and labels would mean others. {_advice("val_dataloader.dataset")}'
        )
    if names is not None and found is not None and len(found) < len(names):
        missing = difference(names, found)
        print_log(f'Not all classes of training are validated: {missing}', 'current', logging.WARNING)
    _check_first(dataset, 'val_dataloader.dataset')


def _check_first(dataset: Any, key: str) -> None:
    """Read one image, and leave the random numbers as they were."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            dataset[0]
    except Exception as error:  # whatever a pipeline raises
        raise ValueError(f'the first image of {key} cannot be read: {type(error).__name__}: {error}') from error
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _advice(key: str) -> str:
    return (
        f"Where folders are the classes, {key}.type='ImageFolder' with {key}.class_root=FOLDER_OF_TRAINING or "
        f'{key}.classes=[..] takes the same ones.'
    )


def _heads(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The heads that classify by the labels of the data set, by their names."""
    for name in ('head', 'decode_head', 'auxiliary_head', 'bbox_head', 'roi_head.bbox_head'):
        head = model
        for part in name.split('.'):
            head = getattr(head, part, None)
        for index, one in enumerate(head if isinstance(head, nn.ModuleList) else [head]):
            if isinstance(getattr(one, 'num_classes', None), int):
                yield (f'{name}.{index}' if isinstance(head, nn.ModuleList) else name), one


def _check_number(model: nn.Module, names: Sequence[str] | None) -> None:
    for name, head in _heads(model):
        if names is not None and len(names) > head.num_classes:
            raise ValueError(
                f'model.{name}.num_classes={head.num_classes} are fewer than the {len(names)} classes of '
                'train_dataloader.dataset'
            )


def _check_knn(cfg: Mapping[str, Any]) -> None:
    entry = cfg.get('knn')
    if not isinstance(entry, Mapping):
        return
    for name in ('bank', 'query'):
        key, dataset = f'knn.{name}.dataset', (entry.get(name) or {}).get('dataset')
        if not isinstance(dataset, Mapping):
            continue
        for index, transform in enumerate(dataset.get('pipeline') or ()):
            try:
                TRANSFORMS.build(transform)
            except Exception as error:  # whatever a class raises
                raise ValueError(
                    f'{key}.pipeline.{index} cannot be built, on which tools/eval_knn.py would stop after the run: '
                    f'{type(error).__name__}: {error}'
                ) from error
        if missing := missing_paths(key, dataset):
            listed = '; '.join(f'{place} = {path}' for place, path in missing.items())
            print_log(f'tools/eval_knn.py will lack data after this run: {listed}', 'current', logging.WARNING)


def _check_room(runner: Runner) -> None:
    hook = next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)
    folder = Path(runner.work_dir)
    if hook is None or hook.out_dir is not None or not folder.is_dir():
        return
    size = checkpoint_size(model_of(runner), runner.cfg)
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(f'{folder} has {_gib(free)} free, and a checkpoint of this run takes about {_gib(size)}')
    wanted = max(hook.max_keep_ckpts, 0) + 1
    if free < wanted * size:
        print_log(
            f'{folder} has {_gib(free)} free. The {wanted} checkpoints that are there at a time take about '
            f'{_gib(wanted * size)}.',
            'current',
            logging.WARNING,
        )


def checkpoint_size(model: nn.Module, cfg: Mapping[str, Any]) -> int:
    """About how many bytes a checkpoint of a run takes: the weights and what its optimizer keeps of them."""
    optimizer = str(((cfg.get('optim_wrapper') or {}).get('optimizer') or {}).get('type', ''))
    states = next((number for name, number in STATES.items() if name in optimizer), 0)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    trained = sum(param.numel() * param.element_size() for param in model.parameters() if param.requires_grad)
    return weights + states * trained


def _gib(size: float) -> str:
    return f'{size / 2**30:.2g} GiB'
