"""Where a run starts from: the newest good checkpoint, a given one, or weights. Nothing in any file is executed."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import CheckpointLoader
from torch import nn

from poa_mm.checkpoint import (
    PATTERN,
    SCHEME,
    SUPERNET_KEY,
    CheckpointError,
    Resizing,
    check_finite,
    check_integrity,
    check_same_network,
    check_same_supernet,
    check_state,
    description_of,
    read_checkpoint,
    shorten,
)
from poa_mm.checkpoint.geometry import compare_normalisation
from poa_mm.checkpoint.unpickling import History, is_inert
from poa_mm.main_process import on_main
from poa_mm.models.selfsup.frozen_teacher import NAME as FROZEN_TEACHER

NAME = re.compile(r'(?:iter|epoch)_(\d+)\.pth')


def set_start(cfg: Config, resume: str | None = None) -> Path | None:
    """Decide what a run starts from and make mmengine read it without executing anything.

    Args:
        cfg: Config of a run, with its ``work_dir``; ``resume`` and ``load_from`` change. Where several processes
            run, they have to have met: rank 0 decides.
        resume: Checkpoint to go on from; ``'auto'`` for the newest good one of the work dir, or from
            ``load_from`` if it has none yet. Default: what the config says.

    Returns:
        The local file that the run goes on from; nothing if it is a new run.

    Raises:
        CheckpointError: If a file is missing, broken, or holds anything else than tensors and plain data; if there
            are checkpoints in the work dir but no good one.
    """
    if resume is None and cfg.get('resume') and not cfg.get('load_from'):
        resume = 'auto'
    if resume == 'auto':
        latest = on_main(find_resumable, cfg.work_dir)
        cfg.resume = latest is not None
        cfg.load_from = str(latest) if latest else cfg.get('load_from')
    elif resume is not None:
        cfg.resume, cfg.load_from = True, resume
    source = str(cfg.get('load_from') or '').removeprefix(SCHEME)
    if not source or '://' in source:
        return None
    path = Path(source).expanduser()
    if not cfg.get('resume') and _is_initialised_from(cfg.get('model'), path):
        cfg.load_from = None  # init_cfg loads it into the module that it is of, resized where that is needed
        return None
    read_checkpoint(path, weights=False)
    cfg.load_from = f'{SCHEME}{path}'
    return path if cfg.get('resume') else None


def _is_initialised_from(config: Any, path: Path) -> bool:
    """Whether an ``init_cfg`` in a nested config, but for that of a frozen teacher, names this very file."""
    if isinstance(config, Mapping):
        checkpoint = config.get('checkpoint')
        if config.get('type') == 'Pretrained' and isinstance(checkpoint, str):
            return Path(checkpoint).expanduser().absolute() == path.absolute()
        config = [value for key, value in config.items() if key != FROZEN_TEACHER]
    elif not isinstance(config, (list, tuple)):
        return False
    return any(_is_initialised_from(item, path) for item in config)


def check_start(checkpoint: Mapping[str, Any], model: nn.Module, what: str | os.PathLike) -> None:
    """Check that weights that a new run starts from are of this network, as far as the checkpoint says of which.

    Args:
        checkpoint: Its content, with or without what the tensors hold.
        model: The model of the run, without a distributed wrapper.
        what: What errors call the checkpoint, such as its path.

    Raises:
        CheckpointError: If they are not; lists the differences.
    """
    backbone = getattr(model, 'backbone', None)
    if SUPERNET_KEY in checkpoint and hasattr(backbone, 'extract'):
        check_same_network(checkpoint[SUPERNET_KEY], backbone, what)


# --- the newest good checkpoint --------------------------------------------------------------


def find_resumable(work_dir: str | os.PathLike) -> Path | None:
    """The newest checkpoint that is what was written, and can be read.

    It is the one that ``last_checkpoint`` names, or one of a higher number that was written after that file; if
    that is damaged, the next lower number. Each one left out gives a warning with its name and what is wrong.

    Args:
        work_dir: Folder of a run.

    Returns:
        The path; nothing if there are no checkpoints at all.

    Raises:
        CheckpointError: If there are checkpoints, but no good one.
    """
    candidates = _candidates(Path(work_dir))
    for path in candidates:
        try:
            check_integrity(path)
            read_checkpoint(path, weights=False)
        except CheckpointError as error:
            _warn(f'Not resumed from {error}')
            continue
        return path
    if candidates:
        names = ', '.join(path.name for path in candidates)
        raise CheckpointError(f'{work_dir}: none of its checkpoints can be resumed from: {names}')
    return None


def _candidates(work_dir: Path) -> list[Path]:
    """Checkpoints of a run, the newest first."""
    pointer = work_dir / 'last_checkpoint'
    last = _named_by(pointer)
    folder = last.parent if last and last.exists() else work_dir
    numbers = {path: int(match[1]) for path in folder.glob('*.pth') if (match := NAME.fullmatch(path.name))}
    if last is not None:
        if match := NAME.fullmatch(last.name):
            # Higher numbers are those of a run killed before it could point at them, or of an earlier, longer run.
            written = pointer.stat().st_mtime_ns
            limit = int(match[1])
            numbers = {path: n for path, n in numbers.items() if n <= limit or path.stat().st_mtime_ns >= written}
        elif last.exists():
            return [last, *sorted(numbers, key=numbers.get, reverse=True)]
    return sorted(numbers, key=numbers.get, reverse=True)


def _named_by(pointer: Path) -> Path | None:
    """What ``last_checkpoint`` names, there or not.

    mmengine writes a whole path, which a copy or a moved folder still has. So the file of that name beside the pointer
    comes first; another folder is read only if there is none.
    """
    if not pointer.is_file():
        return None
    text = pointer.read_text(errors='replace').strip().strip('\0')
    if not text:
        _warn(f'{pointer} is blank: looking for the newest checkpoint beside it')
        return None
    named = Path(text)
    beside = pointer.with_name(named.name) if named.name else pointer
    if beside.exists():
        return beside
    if named.exists():
        _warn(
            f'{pointer} names {text}, which is in another folder, and there is no {named.name} beside it: '
            f'going on from {named.absolute()}'
        )
        return named
    _warn(f'{pointer} names {text}, which is not there: looking for the newest checkpoint beside it')
    return beside


def _warn(message: str) -> None:
    print_log(message, logger='current', level=logging.WARNING)


# --- reading it ------------------------------------------------------------------------------


@CheckpointLoader.register_scheme(PATTERN, force=True)
def load_from_poa(filename: str, map_location: Any = None) -> dict[str, Any]:
    """What mmengine's Runner resumes from or loads: ``load_from='poa://PATH'``; see :func:`read_run`.

    Args:
        filename: Path of a local file, after ``poa://`` or what says how its weights are resized
            (:class:`~poa_mm.checkpoint.Resizing`).
        map_location: Ignored: the tensors are on the CPU, from where they are copied.

    Raises:
        CheckpointError: As :func:`~poa_mm.checkpoint.read_checkpoint`.
    """
    resizing, path = Resizing.parse(filename)
    content = read_run(path)
    weights = content.get('state_dict', content)
    check_finite(weights, path)
    if resizing != Resizing():
        description = description_of(content.get('meta'), path)
        grid, mode = (description.grid, description.mode) if description else (None, 'bicubic')
        content = {**content, 'state_dict': resizing.apply(weights, grid, mode)}
    return content


def read_run(path: str | os.PathLike, weights: bool = True) -> dict[str, Any]:
    """What a checkpoint says of a run.

    Tensors, and logs as far as they are numbers. Left out is what a Runner would execute (the config of the
    earlier run), and names of files outside the checkpoint's folder, which it would delete when better
    ones are there.

    Args:
        path: A local file, or a folder of :func:`~poa_mm.checkpoint.sharded.save_sharded`.
        weights: As of :func:`~poa_mm.checkpoint.read_checkpoint`. Default: ``True``.

    Raises:
        CheckpointError: As :func:`~poa_mm.checkpoint.read_checkpoint`.
    """
    path = Path(path)
    content = read_checkpoint(path, weights)
    if isinstance(content.get('meta'), dict):
        content['meta'].pop('config', None)  # text of Python, which Runner.resume executes
    hub = content.get('message_hub')
    if _is_hub(hub):
        content['message_hub'] = _plain_hub(hub, path.absolute().parent)
    return content


def _is_hub(hub: Any) -> bool:
    parts = ('log_scalars', 'runtime_info', 'resumed_keys')
    return isinstance(hub, Mapping) and all(isinstance(hub.get(part), Mapping) for part in parts)


def _plain_hub(hub: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """State of a message hub: histories with their numbers, and harmless information."""
    scalars = {
        name: HistoryBuffer(history.values, history.counts, history.max_length)
        for name, history in hub['log_scalars'].items()
        if isinstance(history, History) and history.is_complete()
    }
    info = {name: value for name, value in hub['runtime_info'].items() if not is_inert(value)}
    for name in [name for name in info if str(name).startswith('best_ckpt')]:
        if not isinstance(info[name], str) or Path(info[name]).absolute().parent != folder:
            del info[name]
    if 'keep_ckpt_ids' in info:
        ids = info['keep_ckpt_ids']
        info['keep_ckpt_ids'] = [step for step in ids if type(step) is int] if isinstance(ids, list) else []
    resumed = {name: bool(flag) for name, flag in hub['resumed_keys'].items() if name in scalars or name in info}
    return dict(log_scalars=scalars, runtime_info=info, resumed_keys=resumed)


def check_resumable(checkpoint: Mapping[str, Any], model: nn.Module, what: str | os.PathLike) -> None:
    """Check that a checkpoint is one of a training run of this very network.

    Args:
        checkpoint: Its content, with or without what the tensors hold.
        model: The model of the run that is to go on, without a distributed wrapper.
        what: What errors call the checkpoint, such as its path.

    Raises:
        CheckpointError: If it is not; lists the differences.
    """
    parts = {'meta': Mapping, 'state_dict': Mapping, 'optimizer': Mapping, 'message_hub': Mapping}
    if missing := [name for name, kind in parts.items() if not isinstance(checkpoint.get(name), kind)]:
        raise CheckpointError(
            f'{what}: is not a checkpoint to resume: it lacks {shorten(missing)}; '
            '`load_from` starts a new run from the weights of one'
        )
    if not _is_hub(checkpoint['message_hub']):
        raise CheckpointError(
            f'{what}: expected the state of a message hub, found {shorten(checkpoint["message_hub"])}'
        )
    for name in ('epoch', 'iter'):
        number = checkpoint['meta'].get(name)
        if type(number) is not int or number < 0:
            raise CheckpointError(f'{what}: expected meta.{name} to be a whole number, found {number!r}')
    backbone = getattr(model, 'backbone', None)
    if SUPERNET_KEY in checkpoint and hasattr(backbone, 'space'):
        check_same_supernet(checkpoint[SUPERNET_KEY], backbone, what)
        stored = checkpoint[SUPERNET_KEY].get('data_preprocessor') or {}
        normalises = stored.get('mean') is not None and hasattr(model, 'data_preprocessor')
        if normalises and (different := compare_normalisation(model.data_preprocessor, stored)[0]):
            wrong = '; '.join(f'{name} is {mine}, in the checkpoint {theirs}' for name, mine, theirs in different)
            raise CheckpointError(f'{what}: the images of this run are normalised otherwise: {wrong}')
    check_state(model.state_dict(), checkpoint['state_dict'], f'{what}: state_dict')


def warn_of_other_settings(checkpoint: Mapping[str, Any], cfg: Config) -> None:
    """Say what in the config is not as in the run that goes on, and has no effect: its recipe, and its seed."""
    before, now = (checkpoint.get('meta') or {}).get('seed'), (cfg.get('randomness') or {}).get('seed')
    if before is not None and now is not None and before != now:
        _warn(
            f'randomness.seed is {now} and was {before}: a resumed run keeps the seed that it began with. For another '
            'one, start a new run in another work dir.'
        )
    poa = checkpoint.get(SUPERNET_KEY)
    before, now = (poa or {}).get('recipe'), cfg.get('recipe')
    if not isinstance(before, Mapping) or not isinstance(now, Mapping):
        return
    before, now = ({key: repr(_listed(value)) for key, value in dict(numbers).items()} for numbers in (before, now))
    changed = [
        f'recipe.{key} is {now.get(key)} and was {before.get(key)}'
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if changed:
        _warn(
            f'{"; ".join(changed)}: a resumed run keeps the learning rate, weight decay and schedules that it began '
            'with. For others, start a new run from the weights (load_from).'
        )


def _listed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _listed(item) for key, item in sorted(value.items())}
    return [_listed(item) for item in value] if isinstance(value, (list, tuple)) else value
