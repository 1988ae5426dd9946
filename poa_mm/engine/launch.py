"""Starting distributed runs, with GPUs or without."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as torch_dist
from mmengine.config import Config
from mmengine.dist import init_dist, is_distributed

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')


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


def prepare(cfg: Config, launcher: str) -> None:
    """Initialise the process group and fit ``cfg`` to the machine, before a Runner is built from it.

    Args:
        cfg: Config of a run; changed in place. Of ``env_cfg.dist_cfg``, the ``timeout`` counts; the backend
            follows from the machine.
        launcher: As for :func:`init_distributed`.
    """
    init_distributed(launcher, cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout'))
    cfg.launcher = launcher
    if launcher != 'none' and not torch.cuda.is_available():
        wrapper = dict(
            type='MMDistributedDataParallel',
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        )
        # device_ids must be None on the CPU; mmengine fills in the local rank where it is not given.
        cfg.model_wrapper_cfg = {**wrapper, **cfg.get('model_wrapper_cfg', {}), 'device_ids': None}
