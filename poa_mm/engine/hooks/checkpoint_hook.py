"""Checkpoints of a run that may be killed at any time."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.logging import HistoryBuffer
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from poa_mm.checkpoint import remove_temporaries, write_file

from ..accumulation import waiting_batches
from ..resume import check_resumable
from .model import model_of
from .once import OnceHook

WAITING = 'waiting_batches'  # in the meta of a checkpoint


@HOOKS.register_module()
class POACheckpointHook(OnceHook, CheckpointHook):
    """mmengine's ``CheckpointHook``, after which there is a good checkpoint at any time.

    Each file appears complete or not at all and says its SHA-256; ``last_checkpoint`` appears complete, too.
    Older files than ``max_keep_ckpts`` allows are removed when the new one is on the disk, so there is room
    for one more needed. (``save_best`` removes the best one first, as in mmengine.) What is resumed has to
    fit the run's network.

    With gradient accumulation, a checkpoint that is due between two updates is written at the next one, for the
    gradients so far would be missing in it. One that has to be written in between (``save_best``, ``by_epoch``) says
    how many batches it lacks, and a run that goes on from it warns.

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
        self._due = False
        if is_main_process() and '://' not in str(self.out_dir):
            remove_temporaries(self.out_dir)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Save what is due, at an update."""
        if self.by_epoch:
            return
        last = self.save_last and self.is_last_train_iter(runner)
        self._due = self._due or last or self.every_n_train_iters(runner, self.interval, self.save_begin)
        if self._due and not waiting_batches(runner.optim_wrapper):
            self._due = False
            runner.logger.info(f'Saving checkpoint at {runner.iter + 1} iterations')
            self._save_checkpoint(runner)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check a checkpoint that is to be resumed, before mmengine takes from it what fits.

        Raises:
            CheckpointError: As :func:`~poa_mm.engine.resume.check_resumable`.
        """
        if runner.cfg.get('resume'):
            check_resumable(checkpoint, model_of(runner), 'the checkpoint to resume')
            self._say_what_is_missing(runner, checkpoint['meta'])

    @staticmethod
    def _say_what_is_missing(runner: Runner, meta: dict) -> None:
        wrapper = runner.optim_wrapper
        counts = wrapper._accumulative_counts if isinstance(wrapper, OptimWrapper) else 1
        # Files of earlier versions do not say it, and begin at iteration 0.
        missing = meta.get(WAITING, meta['iter'] % counts)
        if missing:
            runner.logger.warning(
                f'The checkpoint of iteration {meta["iter"]} was saved between two updates: the gradients of the last '
                f'{missing} batches are not in it. They are left out, and the run will not be exactly what it would '
                'have been without the interruption.'
            )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Leave out all but the latest logged values; say how many batches wait for an update."""
        checkpoint['meta'][WAITING] = waiting_batches(runner.optim_wrapper)
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
