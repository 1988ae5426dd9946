"""Runs that are saved, stopped and resumed while gradients are accumulated."""

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from torch import nn

from poa_mm.checkpoint import read_checkpoint
from poa_mm.engine import POAOptimWrapper
from poa_mm.engine.accumulation import waiting_batches
from poa_mm.engine.resume import set_start


@pytest.fixture
def config(run_config):
    run_config.train_cfg = dict(type='ResumableTrainLoop', max_iters=8)
    run_config.train_dataloader.sampler.type = 'ResumableSampler'
    run_config.default_hooks.checkpoint.update(type='POACheckpointHook', interval=1)
    run_config.param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=False, begin=0, end=8)]
    run_config.custom_hooks += [dict(type='NonFiniteHook'), dict(type='PreemptionHook')]
    return run_config


def saved(config):
    return sorted(path.name for path in Path(config.work_dir).glob('*.pth'))


def go_on_from(config, source):
    """A folder of its own for the rest of a run."""
    source = Path(source)
    config.work_dir = str(source.parent.parent / f'resumed-{source.stem}')
    Path(config.work_dir).mkdir()
    shutil.copy(source, config.work_dir)
    set_start(config, 'auto')


@pytest.fixture
def warnings(monkeypatch):
    """What the runs warn of."""
    heard = []
    monkeypatch.setattr(MMLogger, 'warning', lambda self, text, *args, **kwargs: heard.append(text))
    return heard


@pytest.mark.parametrize(
    ('counts', 'interval', 'expected'),
    [
        (4, 1, [4, 8]),
        (4, 3, [4, 8]),
        (3, 1, [3, 6, 8]),  # the last update is the mean of two batches
        (5, 2, [5, 8]),
        (2, 4, [4, 8]),
        (16, 3, [8]),
    ],
)
def test_saved_at_updates_and_resumed_exactly(config, build_runner, counts, interval, expected, warnings):
    config.optim_wrapper.accumulative_counts = counts
    config.default_hooks.checkpoint.interval = interval
    whole = build_runner(config)
    whole.train()
    assert saved(config) == [f'iter_{n}.pth' for n in expected]
    for n in expected[:-1]:
        folder = Path(config.work_dir)
        go_on_from(config, folder / f'iter_{n}.pth')
        resumed = build_runner(config)
        resumed.train()
        for name, value in whole.model.state_dict().items():
            assert torch.equal(resumed.model.state_dict()[name], value), (n, name)
        config.work_dir = str(folder)
    assert not [text for text in warnings if 'update' in text]


class Send(Hook):
    """Sends this process a signal in an iteration."""

    def __init__(self, number, iteration):
        self.number, self.iteration = number, iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(('iteration', 'stops_at'), [(0, 3), (1, 3), (2, 3), (3, 6), (6, 8), (7, 8)])
def test_a_signal_is_obeyed_at_the_next_update(config, build_runner, iteration, stops_at):
    config.optim_wrapper.accumulative_counts = 3
    config.default_hooks.checkpoint.interval = 1000
    runner = build_runner(config, [Send(signal.SIGTERM if iteration % 2 else signal.SIGINT, iteration)])
    runner.train()
    assert runner.iter == stops_at
    assert saved(config) == [f'iter_{stops_at}.pth']


def test_a_longer_run_begins_with_a_whole_update(config, build_runner):
    """The last update of the shorter run was the mean of two batches; the next one is that of four again."""
    config.optim_wrapper.accumulative_counts = 4
    config.train_cfg.max_iters = 6
    build_runner(config).train()
    config.train_cfg.max_iters = 12
    set_start(config, 'auto')
    runner = build_runner(config)
    runner.train()
    assert saved(config) == ['iter_10.pth', 'iter_12.pth', 'iter_4.pth', 'iter_6.pth']


def of_an_earlier_version(path, iteration):
    """A checkpoint between two updates."""
    content = torch.load(path, weights_only=False)
    content['meta']['iter'] = iteration
    content['poa']['data']['samples'] = iteration * 8
    content['meta'].pop('waiting_batches')
    torch.save(content, path.with_name(f'iter_{iteration}.pth'))
    path.unlink()


class Poison(Hook):
    """Makes the loss of all iterations NaN."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        data_batch['inputs'][0] = data_batch['inputs'][0] * torch.tensor(float('nan'))


def test_a_checkpoint_between_updates_is_said_to_be_one(config, build_runner, warnings):
    config.optim_wrapper.accumulative_counts = 4
    config.train_cfg.max_iters = 4
    build_runner(config).train()
    of_an_earlier_version(Path(config.work_dir, 'iter_4.pth'), 6)
    config.train_cfg.max_iters = 14
    set_start(config, 'auto')
    runner = build_runner(config, [Poison()])
    runner.train()  # and a step that is not finite is left out, as in any other run
    assert runner.optim_wrapper.skipped_in_a_row == 2
    assert saved(config) == ['iter_10.pth', 'iter_14.pth', 'iter_6.pth']
    assert any('iteration 6 was saved between two updates: the gradients of the last 2 batches' in w for w in warnings)


def test_save_best_between_updates_says_what_it_lacks(config, build_runner, warnings):
    class Best(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if runner.iter == 1:
                runner.save_checkpoint(runner.work_dir, 'best.pth', meta=dict(epoch=0, iter=2), by_epoch=False)

    config.optim_wrapper.accumulative_counts = 4
    runner = build_runner(config)
    runner.register_hook(Best(), priority='VERY_LOW')
    runner.train()
    assert read_checkpoint(Path(config.work_dir, 'best.pth'))['meta']['waiting_batches'] == 2
    assert read_checkpoint(Path(config.work_dir, 'iter_8.pth'))['meta']['waiting_batches'] == 0
    set_start(config, str(Path(config.work_dir, 'best.pth')))
    build_runner(config).train()
    assert any('last 2 batches are not in it' in text for text in warnings)


@pytest.mark.parametrize(
    ('counts', 'start', 'end'), [(4, 0, 8), (4, 6, 8), (4, 6, 15), (3, 4, 11), (1, 5, 9), (7, 2, 5)]
)
def test_each_update_is_the_mean_of_its_batches(counts, start, end):
    """The gradient of `w` is 1 in each batch, so is that of each mean."""
    net = nn.Linear(1, 1, bias=False)
    wrapper = POAOptimWrapper(torch.optim.SGD(net.parameters(), lr=1.0), accumulative_counts=counts)
    wrapper.initialize_count_status(net, start, end)
    updates, waited = [], []
    for iteration in range(start, end):
        before = net.weight.item()
        wrapper.update_params(net(torch.ones(1, 1)).sum())
        waited.append(waiting_batches(wrapper))
        if waited[-1] == 0:
            updates.append(iteration + 1 - start)
            assert net.weight.item() == pytest.approx(before - 1, abs=1e-6)
    assert updates == [*range(counts, end - start, counts), end - start]
    assert max(waited) == min(counts, end - start) - 1


def test_what_is_no_wrapper_waits_for_nothing():
    assert waiting_batches(None) == 0
    assert waiting_batches(dict(type='OptimWrapper')) == 0
