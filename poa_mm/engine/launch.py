"""Starting runs, distributed or not, with GPUs or without."""

from __future__ import annotations

import logging
import os
import time
import traceback
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as torch_dist
from mmengine.config import Config
from mmengine.dist import barrier, get_world_size, init_dist, is_distributed, is_main_process
from mmengine.logging import print_log
from mmengine.registry import MODELS

from poa_mm.compat import check_downstream, import_downstream
from poa_mm.mistakes import UserError

from .config_keys import READ_BY_A_RUN
from .data_config import check_channels, count_images, place_indices
from .hooks.once import check_lists
from .late_freezing import LATE, freezes_late
from .memory import keep_freed_memory
from .options import OptionError, Text, merge_options
from .preflight import check_data
from .recipe_checks import check_lengths, fit_batch, warn_of_accumulation
from .sync_bn import UNSYNCED
from .sync_bn import unsync_bn as _unsync_bn

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')
GLOO_REST = 0.2  # seconds


class ConfigError(UserError, ValueError):
    """A config that cannot be read, or that says what nothing understands."""


def read_config(
    path: str | os.PathLike,
    options: Mapping[str, Any] | None = None,
    work_dir: str | os.PathLike | None = None,
    reads: Collection[str] = READ_BY_A_RUN,
) -> Config:
    """Read a config file, with what the command line says beside it.

    Args:
        path: Config file.
        options: What overrides it, as of :func:`~poa_mm.engine.options.merge_options`. Default: nothing.
        work_dir: Where logs and checkpoints go. Default: the config's, or ``work_dirs/CONFIG_NAME``.
        reads: Names of the entries that the command reads. Default: those of a run.

    Raises:
        ConfigError: If the file is missing or cannot be read, or a library that it builds on is not installed.
        OptionError: As :func:`~poa_mm.engine.options.merge_options`; if a command line names another work dir.
        ValueError: If the recipe has no such number.
    """
    cfg = read_file(path)
    merge_options(cfg, options, reads)
    if work_dir and isinstance((options or {}).get('work_dir'), Text) and str(work_dir) != cfg.work_dir:
        raise OptionError(f'the work dir is given twice, as {str(work_dir)!r} and as {cfg.work_dir!r}')
    cfg.work_dir = str(work_dir or cfg.get('work_dir') or Path('work_dirs', Path(path).stem))
    return cfg


def read_file(path: str | os.PathLike) -> Config:
    """Read a config file.

    Raises:
        ConfigError: If that fails, in whichever way: a config is a program, and an error in it is its writer's. Also
            if a library that it builds on is not installed.
    """
    if not Path(path).is_file():
        raise ConfigError(f'{path}: expected a config file, found {"a folder" if Path(path).is_dir() else "nothing"}')
    try:
        cfg = Config.fromfile(path)
    except Exception as error:
        lines = [f'line {entry.lineno}: ' for entry in traceback.extract_tb(error.__traceback__) if not entry.filename]
        where = lines[-1] if lines else ''
        raise ConfigError(f'{path}: cannot be read: {where}{type(error).__name__}: {error}') from error
    try:
        check_downstream(cfg.get('default_scope'))
    except ImportError as error:
        raise ConfigError(f'{path}: {error}') from error
    return cfg


def init_distributed(launcher: str, timeout: float | None = None) -> None:
    """Join the process group: nccl where there are GPUs, gloo where there are none.

    mmengine's ``init_dist`` selects a CUDA device first, so a CPU run has to be initialised before the
    Runner does it. Does nothing for ``'none'`` and for a process that has joined already.

    Args:
        launcher: One of ``'none'``, ``'pytorch'`` (torchrun), ``'slurm'`` and ``'mpi'``.
        timeout: Seconds after which a collective operation fails. Default: torch's.

    Raises:
        ValueError: If the launcher is unknown, or is not ``'pytorch'`` on a machine without GPU.
    """
    if launcher not in LAUNCHERS:
        raise ValueError(f'launcher {launcher!r} is not one of {", ".join(LAUNCHERS)}')
    if launcher == 'none' or is_distributed():
        return
    if torch.cuda.is_available():
        init_dist(launcher, **({} if timeout is None else {'timeout': timeout}))
    elif launcher == 'pytorch':
        os.environ.setdefault('LOCAL_RANK', '0')
        torch_dist.init_process_group('gloo', **({} if timeout is None else {'timeout': timedelta(seconds=timeout)}))
    else:
        raise ValueError(f"launcher {launcher!r} needs GPUs; without, use 'pytorch' (torchrun)")


def leave_distributed() -> None:
    """Leave the process group, when all have come so far: the last call of a run that went well.

    Does nothing for a process that never joined one.
    """
    if not is_distributed():
        return
    barrier()
    if torch_dist.get_backend() == 'gloo':
        # A thread of gloo drops its last piece of work after it has reported it done, and needs the interpreter for
        # that. If that one is ending already, the process aborts, as some runs in a hundred did on a busy machine.
        time.sleep(GLOO_REST)
    torch_dist.destroy_process_group()


def prepare(cfg: Config, launcher: str, parts: Sequence[str] = ('train', 'val'), scale_to_gpus: bool = False) -> None:
    """Look for the data, initialise the process group and fit ``cfg`` to data and machine, before a Runner is built.

    Without a GPU, the process keeps the memory that it frees (:func:`~poa_mm.engine.memory.keep_freed_memory`).

    Args:
        cfg: Config of a run; changed in place. Of ``env_cfg.dist_cfg``, the ``timeout`` counts; the backend
            follows from the machine. Where several processes train on CPUs, ``SyncBN``, which torch has for
            GPUs only, becomes ``BN``. Where they train a Swin with frozen stages, ``find_unused_parameters`` is
            set, unless the config says otherwise.
        launcher: As for :func:`init_distributed`.
        parts: Whose data the run needs, as for :func:`~poa_mm.engine.preflight.check_data`.
            Default: ``'train'`` and ``'val'``.
        scale_to_gpus: As of :func:`~poa_mm.engine.recipe_checks.fit_batch`. Default: False.

    Raises:
        BatchError: As :func:`~poa_mm.engine.recipe_checks.fit_batch`.
        FileNotFoundError: If data that the config names is missing.
        ValueError: As :func:`init_distributed`, :func:`~poa_mm.engine.data_config.count_images` and
            :func:`~poa_mm.engine.hooks.once.check_lists`.
    """
    import_downstream(cfg.get('default_scope'))
    check_lists(cfg)
    check_data(cfg, parts)
    place_indices(cfg)
    if 'train' in parts:
        check_channels(cfg)
    init_distributed(launcher, cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout'))
    if 'train' in parts:
        fit_batch(cfg, get_world_size(), scale_to_gpus)
        count_images(cfg)
        _show_short_runs(cfg)
        check_lengths(cfg)
        warn_of_accumulation(cfg)
    cfg.launcher = launcher
    if (cfg.get('randomness') or {}).get('deterministic'):
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # torch asks for it on GPUs
    if launcher != 'none' and 'find_unused_parameters' not in cfg and freezes_late(cfg.get('model')):
        cfg.find_unused_parameters = True
        if is_main_process():
            print_log(LATE, 'current')
    if not torch.cuda.is_available():
        keep_freed_memory()
    if launcher != 'none' and not torch.cuda.is_available():
        wrapper = dict(
            type='CPUDistributedDataParallel',
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        )
        # device_ids must be None on the CPU; mmengine fills in the local rank where it is not given.
        cfg.model_wrapper_cfg = {**wrapper, **cfg.get('model_wrapper_cfg', {}), 'device_ids': None}
        cfg.sync_bn = None
        with MODELS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
            number = _unsync_bn(cfg.get('model'), registry)
        if number and is_main_process():
            print_log(UNSYNCED, 'current', logging.WARNING)


def _show_short_runs(cfg: Config) -> None:
    """Let a run that is shorter than the interval of its log have some lines, at a tenth of its length."""
    logger, length = (cfg.get('default_hooks') or {}).get('logger'), (cfg.get('train_cfg') or {}).get('max_iters')
    if logger and length and logger.get('interval', 10) > length:
        logger['interval'] = max(length // 10, 1)
