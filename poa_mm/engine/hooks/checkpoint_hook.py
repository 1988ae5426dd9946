"""Checkpoints of a run that may be killed at any time."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.logging import HistoryBuffer
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from poa_mm.checkpoint import remove_temporaries, write_file

from ..resume import check_resumable
from .model import model_of


@HOOKS.register_module()
class POACheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook``, after which there is a good checkpoint at any time.

    Each file appears complete or not at all and says its SHA-256; ``last_checkpoint`` appears complete, too.
    Older files than ``max_keep_ckpts`` allows are removed when the new one is on the disk, so there is room
    for one more needed. (``save_best`` removes the best one first, as in mmengine.) What is resumed has to
    fit the run's network.

    Args:
        log_history: Values of each logged scalar that a checkpoint holds, for the windows of the logs to go on
            after a resume. mmengine's own holds all of them. Default: 1000.
        **options: Those of :class:`mmengine.hooks.CheckpointHook`. ``backend_args`` are
            ``dict(backend='atomic')`` by default, unless ``out_dir`` is a URI.

    Raises:
        ValueError: If ``log_history`` is below 1.
    """

    def __init__(self, log_history: int = 1000, **options: Any):
        if log_history < 1:
            raise ValueError(f'log_history {log_history} is below 1')
        super().__init__(**options)
        self.log_history = log_history
        if self.backend_args is None and self.file_client_args is None and '://' not in str(self.out_dir or ''):
            self.backend_args = dict(backend='atomic')

    def before_train(self, runner: Runner) -> None:
        """Find the folder and remove what a killed run has left of a checkpoint."""
        super().before_train(runner)
        if is_main_process() and '://' not in str(self.out_dir):
            remove_temporaries(self.out_dir)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check a checkpoint that is to be resumed, before mmengine takes from it what fits.

        Raises:
            CheckpointError: As :func:`~poa_mm.engine.resume.check_resumable`.
        """
        if runner.cfg.get('resume'):
            check_resumable(checkpoint, model_of(runner), 'the checkpoint to resume')

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Leave out all but the latest logged values."""
        scalars = checkpoint['message_hub']['log_scalars']
        for name, buffer in scalars.items():
            values, counts = (history[-self.log_history :] for history in buffer.data)
            scalars[name] = HistoryBuffer(values, counts, buffer.max_length)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        """As mmengine's, in another order: save, point at it, remove."""
        kept = []
        if self.max_keep_ckpts > 0:
            # With those about to be removed: a run killed before that removes them when it is resumed.
            kept = [*(other for other in self.keep_ckpt_ids if other != step), step]
            runner.message_hub.update_info('keep_ckpt_ids', kept)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)

        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            write_file(Path(runner.work_dir, 'last_checkpoint'), [str(self.last_ckpt).encode()])
            for old in kept[: -self.max_keep_ckpts]:
                path = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(old))
                if self.file_backend.isdir(path):  # a sharded one
                    self.file_backend.rmtree(path)
                elif self.file_backend.isfile(path):
                    self.file_backend.remove(path)
        if self.max_keep_ckpts > 0:
            self.keep_ckpt_ids = deque(kept, self.max_keep_ckpts)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
