"""From a config to a runner: everything is checked that can be before the first step."""

from __future__ import annotations

from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from poa_mm.checkpoint import SCHEME, read_checkpoint
from poa_mm.models.frozen import silence_frozen

from .console import ShortConsoleRunner
from .contracts import check_contracts, check_frozen_teacher, check_recorded_classes
from .hooks import StrictPretrainedHook
from .hooks.model import model_of
from .hooks.once import check_hooks
from .resume import check_resumable, check_start, set_start, warn_of_other_settings


def build_runner(cfg: Config, resume: str | None = None) -> Runner:
    """The runner of a training config, ours or a downstream library's.

    Args:
        cfg: The config, with a ``work_dir``, after :func:`~poa_mm.engine.launch.prepare`; changed in place.
        resume: Checkpoint to go on from, or ``'auto'`` for the latest in the work dir. Default: None.

    Raises:
        ValueError: If the config, its data or its checkpoints do not fit each other.
        OSError: If data or a checkpoint is missing.
    """
    resumed = set_start(cfg, resume)
    checkpoint = read_checkpoint(resumed, weights=False) if resumed else {}
    if 'runner_type' in cfg:  # may build its model later
        runner = RUNNERS.build(cfg)
        warn_of_other_settings(checkpoint, cfg)
        return runner
    runner = ShortConsoleRunner.from_cfg(cfg)
    check_hooks(runner.hooks)
    strict = next((hook for hook in runner.hooks if isinstance(hook, StrictPretrainedHook)), StrictPretrainedHook())
    strict.check(model_of(runner))
    if resumed:
        check_resumable(checkpoint, model_of(runner), resumed)
        warn_of_other_settings(checkpoint, cfg)
    elif str(cfg.get('load_from')).startswith(SCHEME):
        start = cfg.load_from.removeprefix(SCHEME)
        check_start(read_checkpoint(start, weights=False), model_of(runner), start)
    check_frozen_teacher(model_of(runner), bool(cfg.get('load_from')))
    silence_frozen(model_of(runner))
    check_contracts(runner)
    if resumed:
        check_recorded_classes(checkpoint['meta'], runner.train_dataloader.dataset, resumed, 'train_dataloader.dataset')
    return runner
