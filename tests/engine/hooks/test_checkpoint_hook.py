import errno
import os
import random
import signal
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from torch.testing import assert_close

from poa_mm.checkpoint import CheckpointError, atomic_files, check_integrity, read_checkpoint
from poa_mm.checkpoint.atomic_files import CheckpointWriteError
from poa_mm.engine import POACheckpointHook
from poa_mm.engine.resume import find_resumable, load_from_poa, set_start

CONFIGS = Path(__file__).parents[3] / 'configs'


@pytest.fixture
def run_config(run_config):
    run_config.default_hooks.checkpoint.update(type='POACheckpointHook', interval=1, max_keep_ckpts=2)
    return run_config


def names(run_config):
    return sorted(path.name for path in Path(run_config.work_dir).glob('*.pth*'))


def test_shipped_configs_use_it():
    for path in (CONFIGS / 'poa').glob('*.py'):
        assert Config.fromfile(path).default_hooks.checkpoint.type == 'POACheckpointHook', path


def test_keeps_the_latest(run_config, build_runner):
    build_runner(run_config).train()
    work_dir = Path(run_config.work_dir)
    assert names(run_config) == ['iter_3.pth', 'iter_4.pth']
    for name in names(run_config):
        check_integrity(work_dir / name)
        assert read_checkpoint(work_dir / name)['meta']['iter'] == int(name[5])
    assert (work_dir / 'last_checkpoint').read_text() == str(work_dir / 'iter_4.pth')


def test_keeps_all(run_config, build_runner):
    del run_config.default_hooks.checkpoint.max_keep_ckpts
    build_runner(run_config).train()
    assert names(run_config) == [f'iter_{n}.pth' for n in (1, 2, 3, 4)]


def test_goes_on_pruning_after_a_resume(run_config, build_runner):
    run_config.train_cfg.max_iters = 3
    build_runner(run_config).train()
    run_config.train_cfg.max_iters = 4
    set_start(run_config, 'auto')
    build_runner(run_config).train()
    assert names(run_config) == ['iter_3.pth', 'iter_4.pth']


def test_disk_full_with_one_checkpoint_kept(run_config, build_runner, monkeypatch):
    run_config.default_hooks.checkpoint.max_keep_ckpts = 1
    replace = os.replace

    def full(source, target):
        if Path(target).name == 'iter_3.pth':
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(atomic_files.os, 'replace', full)
    with pytest.raises(CheckpointWriteError, match=r'No space left on device.*iter_3\.pth'):
        build_runner(run_config).train()
    assert names(run_config) == ['iter_2.pth']
    assert not list(Path(run_config.work_dir).glob('.*.tmp'))

    monkeypatch.undo()
    set_start(run_config, 'auto')
    resumed = build_runner(run_config)
    resumed.train()
    assert resumed.iter == 4
    assert names(run_config) == ['iter_4.pth']


def test_older_ones_are_removed_only_after_the_new_one_is_written(run_config, build_runner, monkeypatch):
    """A run killed in between leaves one more, which the resumed run removes."""

    def killed(self, path):
        raise SystemExit

    monkeypatch.setattr(atomic_files.AtomicBackend, 'remove', killed)
    with pytest.raises(SystemExit):
        build_runner(run_config).train()
    assert names(run_config) == ['iter_1.pth', 'iter_2.pth', 'iter_3.pth']
    monkeypatch.undo()
    Path(run_config.work_dir, '.iter_4.pth.tmp').write_bytes(b'half')
    set_start(run_config, 'auto')
    build_runner(run_config).train()
    assert names(run_config) == ['iter_3.pth', 'iter_4.pth']
    assert not list(Path(run_config.work_dir).glob('.*.tmp'))


def test_histories_are_trimmed(run_config, build_runner):
    run_config.default_hooks.checkpoint.log_history = 2
    runner = build_runner(run_config)
    runner.train()
    scalars = read_checkpoint(Path(run_config.work_dir, 'iter_4.pth'))['message_hub']['log_scalars']
    live = runner.message_hub.log_scalars
    assert 'train/loss' in scalars
    for name, history in scalars.items():
        assert len(history.values) == 2
        assert (history.values == live[name].data[0][-2:]).all(), name
        assert len(live[name].data[0]) == 4


def test_nothing_to_trim_changes_nothing(run_config, build_runner):
    """The same run with mmengine's own hook stores the same."""
    stored = []
    for kind in (POACheckpointHook, CheckpointHook):
        run_config.default_hooks.checkpoint.type = kind.__name__
        run_config.work_dir += kind.__name__
        build_runner(run_config).train()
        stored.append(read_checkpoint(Path(run_config.work_dir, 'iter_4.pth')))
    assert stored[0].keys() == stored[1].keys()
    assert_close(*(content['state_dict'] for content in stored), rtol=0, atol=0)
    assert_close(*(content['optimizer']['state'] for content in stored), rtol=0, atol=0)
    hubs = [content['message_hub'] for content in stored]
    assert hubs[0]['log_scalars'].keys() == hubs[1]['log_scalars'].keys()
    # The one about to be removed is named, too.
    assert [hub['runtime_info']['keep_ckpt_ids'] for hub in hubs] == [[2, 3, 4], [3, 4]]


def test_resume_of_another_network_stops_before_the_first_iteration(run_config, build_runner):
    """Even where mmengine itself reads the file."""
    build_runner(run_config).train()
    run_config.model.head.num_prototypes = [8, 24]
    run_config.train_cfg.max_iters = 5
    run_config.resume = True
    runner = build_runner(run_config)
    with pytest.raises(CheckpointError, match=r'expected \(24, '):
        runner.train()
    assert runner.iter == 0


def test_weights_of_another_network_may_start_a_new_run(run_config, build_runner):
    build_runner(run_config).train()
    run_config.load_from = str(find_resumable(run_config.work_dir))
    run_config.model.head.hidden_channels = 48
    run_config.work_dir += '_second'
    runner = build_runner(run_config)
    runner.train()
    assert runner.iter == 4


def test_history_of_nothing_is_refused():
    with pytest.raises(ValueError, match='log_history 0 is below 1'):
        POACheckpointHook(log_history=0)


def test_other_storage_is_left_to_mmengine():
    assert POACheckpointHook(out_dir='s3://bucket/run').backend_args is None
    assert POACheckpointHook(backend_args=dict(backend='local')).backend_args == dict(backend='local')
    assert POACheckpointHook(out_dir='folder').backend_args == dict(backend='atomic')


def test_out_dir(run_config, build_runner, tmp_path):
    run_config.default_hooks.checkpoint.out_dir = str(tmp_path / 'elsewhere')
    build_runner(run_config).train()
    assert find_resumable(run_config.work_dir) == tmp_path / 'elsewhere' / 'work' / 'iter_4.pth'
    assert isinstance(torch.load(find_resumable(run_config.work_dir), weights_only=False), dict)


def _train(cfg, build_runner):
    set_start(cfg, 'auto')
    build_runner(cfg).train()


@pytest.mark.slow
def test_a_run_killed_20_times(run_config, build_runner):
    """Killed while it saves: it goes on from a whole checkpoint each time, and never falls behind."""
    run_config.train_cfg.max_iters = 100_000
    context = get_context('fork')
    chance = random.Random(0)
    reached = 0
    for _ in range(20):
        runner = context.Process(target=_train, args=(run_config, build_runner), daemon=True)
        runner.start()
        work_dir, deadline = Path(run_config.work_dir), time.monotonic() + 60
        while not (work_dir / f'iter_{reached + 1}.pth').is_file():
            assert runner.is_alive() and time.monotonic() < deadline
            time.sleep(0.005)
        for _ in range(chance.randrange(500)):  # then amid a save
            time.sleep(0.001)
            if any(work_dir.glob('.*.tmp')):
                break
        os.kill(runner.pid, signal.SIGKILL)
        runner.join()
        assert runner.exitcode == -signal.SIGKILL
        content = load_from_poa(f'poa://{find_resumable(work_dir)}')
        assert content['meta']['iter'] > reached
        reached = content['meta']['iter']
    run_config.train_cfg.max_iters = reached + 1
    set_start(run_config, 'auto')
    last = build_runner(run_config)
    last.train()
    assert last.iter == reached + 1
    assert not list(Path(run_config.work_dir).glob('.*.tmp'))
