import os
import signal
import threading
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
from mmengine.hooks import Hook

from poa_mm.engine.hooks import preemption_hook


class Signal(Hook):
    """Sends this process a signal in the middle of an iteration; counts what is saved."""

    def __init__(self, number, iteration, times=1):
        self.number, self.iteration, self.times = number, iteration, times
        self.saved = 0

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)

    def before_save_checkpoint(self, runner, checkpoint):
        self.saved += 1


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize('interval', [1000, 2])
def test_iteration_is_finished_and_saved_once(run_config, build_runner, number, interval):
    run_config.custom_hooks.append(dict(type='PreemptionHook'))
    run_config.default_hooks.checkpoint.update(interval=interval, save_begin=interval)
    before = signal.getsignal(number)
    send = Signal(number, iteration=1)
    runner = build_runner(run_config, [send])
    runner.train()
    assert runner.iter == 2
    assert send.saved == 1
    assert [path.name for path in Path(run_config.work_dir).glob('*.pth')] == ['iter_2.pth']
    assert signal.getsignal(number) is before

    run_config.resume = True
    resumed = build_runner(run_config)
    resumed.train()
    assert resumed.iter == 4


def test_many_sigterms_are_one(run_config, build_runner):
    run_config.custom_hooks.append(dict(type='PreemptionHook'))
    runner = build_runner(run_config, [Signal(signal.SIGTERM, iteration=0, times=3)])
    runner.train()
    assert runner.iter == 1


def test_second_sigint_interrupts(run_config, build_runner):
    run_config.custom_hooks.append(dict(type='PreemptionHook'))
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(KeyboardInterrupt):
            build_runner(run_config, [Signal(signal.SIGINT, iteration=0, times=2)]).train()
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
    assert not list(Path(run_config.work_dir).glob('*.pth'))


def test_without_signal_nothing_changes(run_config, build_runner):
    run_config.custom_hooks.append(dict(type='PreemptionHook'))
    runner = build_runner(run_config)
    runner.train()
    assert runner.iter == 4


def test_a_thread_trains_without(run_config, build_runner):
    run_config.custom_hooks.append(dict(type='PreemptionHook'))
    runner = build_runner(run_config)
    thread = threading.Thread(target=runner.train)
    thread.start()
    thread.join()
    assert runner.iter == 4


def _work(ready):
    preemption_hook.GRACE = 1
    preemption_hook.outlive_signals()
    ready.set()
    time.sleep(60)


def test_a_worker_outlives_the_signals_for_a_while():
    context = get_context('fork')
    ready = context.Event()
    worker = context.Process(target=_work, args=(ready,), daemon=True)
    worker.start()
    ready.wait(10)
    os.kill(worker.pid, signal.SIGINT)
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(0.3)
    assert worker.is_alive()
    worker.join(10)
    assert worker.exitcode == -signal.SIGALRM
