"""Runs that are asked to stop."""

from __future__ import annotations

import signal
import threading
from types import FrameType

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..accumulation import waiting_batches
from .once import OnceHook

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@HOOKS.register_module()
class PreemptionHook(OnceHook):
    """Ends a run on SIGTERM or SIGINT as if it were complete: with a checkpoint, to be resumed.

    A signal to any rank is enough. All ranks finish the iteration at hand, the run's ``CheckpointHook`` saves it,
    and ``runner.train()`` returns: the process exits with 0. What passes until then is what is left of the
    iteration, one checkpoint and a validation if it is due. With gradient accumulation, the run goes on up to the next
    update, which a checkpoint has to wait for. A second SIGINT (Ctrl-C) interrupts at once.

    The ranks tell each other once an iteration, by one number.
    """

    priority = 'LOW'  # before the checkpoint

    def __init__(self):
        self._received = 0
        self._waits = False
        self._replaced: dict[signal.Signals, object] = {}

    def before_train(self, runner: Runner) -> None:
        """Listen to the signals."""
        if threading.current_thread() is not threading.main_thread():
            runner.logger.warning('PreemptionHook: signals reach the main thread only; this run will not notice any.')
            return
        self._received = 0
        self._waits = False
        self._replaced = {number: signal.signal(number, self._note) for number in SIGNALS}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == self._received == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = number

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Stop after this iteration if any rank has been asked to."""
        received = torch.tensor(int(self._received))
        all_reduce(received, op='max')
        if not received:
            return
        name = signal.Signals(received.item()).name
        if waiting := waiting_batches(runner.optim_wrapper):
            if not self._waits:
                runner.logger.warning(
                    f'{name}: {waiting} batches wait for an update; the run saves and stops after it.'
                )
            self._waits = True
            return
        runner.logger.warning(f'{name}: saving iteration {runner.iter + 1} and stopping; go on with --resume.')
        # Their turn comes after this hook's, in the same iteration.
        savers = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook) and not hook.by_epoch]
        for saver in savers:
            saver.interval, saver.save_begin = 1, 0
        if not savers:
            runner.logger.warning('PreemptionHook: no CheckpointHook with by_epoch=False: nothing is saved.')
        runner.train_loop.stop_training = True

    def after_train(self, runner: Runner) -> None:
        """Listen no longer."""
        for number, handler in self._replaced.items():
            signal.signal(number, handler)
        self._replaced = {}


GRACE = 30  # seconds


def outlive_signals(worker_id: int = 0) -> None:
    """Let a data-loading worker survive the signal long enough for its run to finish an iteration.

    Schedulers and terminals send signals to every process of a job. A worker that dies of one takes the run with
    it. SIGINT is ignored; SIGTERM ends the worker after 30 s, lest one that is stuck stay forever. For
    ``worker_init_fn``, after which torch leaves the handlers alone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE))
