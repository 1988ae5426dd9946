import contextlib
import copy
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import MMLogger

from poa_mm.checkpoint import CheckpointError
from poa_mm.engine.resume import find_resumable


class Record(Hook):
    """What each iteration trained on, drew and lost."""

    def __init__(self):
        self.seen = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        samples = data_batch['data_samples']
        subnet = copy.copy(runner.model.deck).deal()
        self.entry = dict(
            iteration=runner.iter,
            indices=[sample.sample_idx for sample in samples],
            images=[view.clone() for view in data_batch['inputs']],
            masks=[sample.mask.clone() for sample in samples],
            subnet=[subnet.width, subnet.depth],
        )

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.entry['losses'] = {name: float(value) for name, value in outputs.items()}
        self.seen.append(self.entry)


def assert_same(first, second):
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.fixture
def config(run_config):
    run_config.train_cfg = dict(type='ResumableTrainLoop', max_iters=5)
    run_config.train_dataloader.sampler.type = 'ResumableSampler'
    run_config.default_hooks.checkpoint.interval = 1
    run_config.model.backbone.drop_path_rate = 0.5  # random numbers in the model
    run_config.param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=False, begin=0, end=5)]
    return run_config


@pytest.fixture
def train(config, build_runner):
    def run():
        record = Record()
        runner = build_runner(config, [record])
        runner.train()
        state = runner.model.state_dict() | {
            f'{i}.{key}': value
            for i, entry in runner.optim_wrapper.optimizer.state_dict()['state'].items()
            for key, value in entry.items()
        }
        return record.seen, state

    return run


@pytest.fixture
def resume(config, train):
    """Go on after an iteration, in a folder of its own, with a random past that is not that of the first run."""

    def run(iteration):
        first = Path(config.work_dir)
        config.work_dir = str(first.parent / 'resumed')
        Path(config.work_dir).mkdir()
        shutil.copy(first / f'iter_{iteration}.pth', config.work_dir)
        config.load_from = str(Path(config.work_dir, f'iter_{iteration}.pth'))
        config.resume = True
        return train()

    return run


@pytest.mark.parametrize(
    'loader',
    [
        pytest.param(dict(num_workers=0), id='0'),
        pytest.param(dict(num_workers=2), id='2', marks=pytest.mark.slow),
        pytest.param(dict(num_workers=2, persistent_workers=True), id='2-persistent', marks=pytest.mark.slow),
    ],
)
def test_resumed_run_is_the_uninterrupted_one(config, train, resume, loader):
    config.train_dataloader.update(loader)
    seen, state = train()
    again, state_again = resume(2)
    assert [entry['iteration'] for entry in again] == [2, 3, 4]
    assert_same(again, seen[2:])
    assert state_again.keys() == state.keys()
    assert_same(dict(state_again), dict(state))
    # Every sample comes once in a pass, in crops that are its own.
    indices = [index for entry in seen for index in entry['indices']]
    assert len(set(indices)) == 40


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_killed_after_any_iteration(config, build_runner, tmp_path_factory, data):
    """Runs of any length, whose updates take 1 to 3 iterations, are killed anywhere, more than once, and go on."""
    config.default_hooks.checkpoint.type = 'POACheckpointHook'  # mmengine's saves between updates, too
    length = data.draw(st.integers(2, 7), label='length')
    config.optim_wrapper.accumulative_counts = data.draw(st.integers(1, 3), label='accumulative_counts')
    config.train_cfg.max_iters = length
    kills = sorted(data.draw(st.sets(st.integers(1, length), min_size=1, max_size=3), label='kills'))

    def run(folder, stop):
        """Until ``stop``, at which the process is gone and whatever was not written with it."""
        record = Record()
        cfg = Config(copy.deepcopy(config.to_dict()) | dict(work_dir=str(folder)))
        latest = find_resumable(folder)
        cfg.resume, cfg.load_from = latest is not None, str(latest) if latest else None
        runner = build_runner(cfg, [record, Kill(stop)])
        with contextlib.suppress(Killed):
            runner.train()
        return record.seen, runner.model.state_dict()

    expected, state = run(tmp_path_factory.mktemp('whole'), None)
    folder, last = tmp_path_factory.mktemp('killed'), {}
    for stop in (*kills, None):
        seen, found = run(folder, stop)
        last |= {entry['iteration']: entry for entry in seen}
    assert_same([last[iteration] for iteration in range(length)], expected)
    assert_same(dict(found), dict(state))


class Killed(BaseException):
    """Stands for a process that is gone: nothing but ``BaseException`` handlers see it."""


class Kill(Hook):
    priority = 'LOWEST'

    def __init__(self, iteration):
        self.iteration = iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration:
            raise Killed


def test_workers_do_not_matter(config, train):
    config.train_cfg.max_iters = 2
    seen, _ = train()
    config.train_dataloader.num_workers = 3
    config.work_dir += '_workers'
    assert_same(train()[0], seen)


def test_seed_of_the_run_decides(config, train):
    config.train_cfg.max_iters = 2
    seen, _ = train()
    config.randomness.seed = 1
    config.work_dir += '_other'
    assert train()[0][0]['indices'] != seen[0]['indices']


def test_without_a_seed_a_resumed_run_has_that_of_its_start(config, train, resume):
    config.randomness = dict(seed=None)
    seen, _ = train()
    assert_same(resume(3)[0], seen[3:])


def test_position_is_written(config, train):
    train()
    entry = torch.load(Path(config.work_dir, 'iter_3.pth'), weights_only=False)['poa']
    assert entry['data'] == dict(seed=0, samples=24, batch_size=8, world_size=1, images=1433, digest='')


def test_other_batches_are_refused(config, train, resume):
    train()
    config.train_dataloader.batch_size = 4
    with pytest.raises(CheckpointError, match=r'1 ranks and batches of 8, this one has 1 and 4; .*allow_other_ranks'):
        resume(3)


def test_other_batches_read_what_is_left(config, train, resume):
    seen, _ = train()
    config.train_dataloader.batch_size = 4
    config.train_cfg.update(allow_other_ranks=True, max_iters=7)
    again, _ = resume(3)
    # Two batches make one of the first run.
    indices = [index for entry in again for index in entry['indices']]
    assert indices == [index for entry in seen[3:] for index in entry['indices']]
    images = torch.cat([entry['images'][0] for entry in again])
    assert_same(images, torch.cat([entry['images'][0] for entry in seen[3:]]))
    entry = torch.load(Path(config.work_dir, 'iter_7.pth'), weights_only=False)['poa']
    assert entry['data']['samples'] == 40


def test_start_from_weights_begins_at_the_beginning(config, train):
    seen, _ = train()
    config.load_from = str(Path(config.work_dir, 'iter_3.pth'))
    config.work_dir += '_second'
    assert train()[0][0]['indices'] == seen[0]['indices']


def test_other_samplers_are_refused(config, train):
    config.train_dataloader.sampler.type = 'InfiniteSampler'
    with pytest.raises(TypeError, match=r"sampler=dict\(type='ResumableSampler'\); got InfiniteSampler"):
        train()


@pytest.mark.parametrize(('batch_size', 'images', 'says'), [(4, 1, True), (4, 3, True), (4, 4, False), (4, 5, False)])
def test_fewer_images_than_a_batch(config, build_runner, monkeypatch, batch_size, images, says):
    heard = []
    monkeypatch.setattr(MMLogger, 'warning', lambda self, text, *args, **kwargs: heard.append(text))
    config.train_dataloader.batch_size = batch_size
    config.train_dataloader.dataset.indices = images
    runner = build_runner(config)
    assert len(runner.train_loop.dataloader.sampler) == images
    assert any(f'{images} images are there for batches of 4' in text for text in heard) == says
