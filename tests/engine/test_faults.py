"""Real processes that are killed, asked to stop or fed with NaN."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason='about machines without a GPU'),
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason='needs 2 processors'),
]

HOOK = """
import copy
import os
import signal
import time
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class FaultHook(Hook):
    '''Records each iteration, and does to one rank what the test is about.'''

    def __init__(self, folder, fault=None, rank=0, iterations=()):
        self.folder, self.fault, self.rank, self.iterations = folder, fault, rank, iterations

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        samples = data_batch['data_samples']
        subnet = copy.copy(runner.model.module.deck).deal()
        self.record = dict(
            indices=[sample.sample_idx for sample in samples],
            images=[view.clone() for view in data_batch['inputs']],
            masks=[sample.mask for sample in samples],
            subnet=[subnet.width, subnet.depth],
        )
        if get_rank() == self.rank and runner.iter in self.iterations:
            if self.fault == 'nan':
                data_batch['inputs'][0] = data_batch['inputs'][0] * torch.tensor(float('nan'))
            else:
                with open(f'{self.folder}/time', 'w') as file:
                    file.write(str(time.time()))
                os.kill(os.getpid(), getattr(signal, self.fault))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.record['losses'] = {name: float(value) for name, value in outputs.items()}
        self.record['weights'] = runner.model.module.state_dict()
        self.record['optimizer'] = runner.optim_wrapper.optimizer.state_dict()['state']
        torch.save(self.record, f'{self.folder}/rank{get_rank()}_iter{runner.iter}.pth')
"""
RUN = """
_base_ = {base!r}
custom_imports = dict(imports=['poa_mm', 'fault_hook'])
custom_hooks = [*_base_.custom_hooks, dict(type='FaultHook', folder={folder!r}, **{fault!r})]
model = dict(backbone=dict(drop_path_rate=0.2))
recipe = dict(gpus={ranks}, batch_size=8)
train_dataloader = dict(batch_size=8, num_workers={workers}, persistent_workers={workers} > 0)
train_cfg = dict(max_iters=6)
default_hooks = dict(checkpoint=dict(interval={interval}), nonfinite=dict(max_in_a_row=2))
log_level = 'ERROR'
"""


class Runs:
    """Runs of one recipe that share a work dir."""

    def __init__(self, folder, ranks, workers, interval=2):
        self.folder, self.ranks, self.workers, self.interval = folder, ranks, workers, interval
        self.folder.mkdir()
        (folder / 'fault_hook.py').write_text(HOOK)

    def run(self, *args, options=(), **fault):
        base = str(ROOT / 'configs' / 'poa' / 'vitt_digits.py')
        how = dict(fault=fault, workers=self.workers, interval=self.interval, ranks=self.ranks)
        text = RUN.format(base=base, folder=str(self.folder), **how)
        (self.folder / 'config.py').write_text(text)
        return subprocess.run(
            [ROOT / 'tools' / 'dist_train.sh', self.folder / 'config.py', str(self.ranks)]
            + ['--work-dir', self.folder / 'work', *args]
            # As after the ramps of the recipe: every loss takes part.
            + ['--cfg-options', 'custom_hooks.1.patch_loss_start=0', 'custom_hooks.1.freeze_prototypes_iters=0']
            + list(options),
            env={**os.environ, 'PYTHON': sys.executable, 'PYTHONPATH': str(self.folder), 'OMP_NUM_THREADS': '1'},
            capture_output=True,
            text=True,
            timeout=900,
        )

    def record(self, rank, iteration):
        return torch.load(self.folder / f'rank{rank}_iter{iteration}.pth', weights_only=False)

    def checkpoints(self):
        return sorted(path.name for path in (self.folder / 'work').glob('*.pth'))


def last_line(done):
    """What a run that was refused says, without any traceback, whoever started its processes."""
    assert 'Traceback' not in done.stderr, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith('train: error: ')
    return line


def assert_same_runs(found, expected):
    for rank in range(expected.ranks):
        for iteration in range(6):
            assert_close(found.record(rank, iteration), expected.record(rank, iteration), rtol=0, atol=0)


@pytest.mark.parametrize('ranks', [1, 2])
@pytest.mark.parametrize('workers', [0, 2])
def test_killed_and_resumed_is_as_uninterrupted(tmp_path, ranks, workers):
    whole, killed = (Runs(tmp_path / name, ranks, workers) for name in ('whole', 'killed'))
    done = whole.run()
    assert done.returncode == 0, done.stderr
    done = killed.run(fault='SIGKILL', iterations=(3,))
    assert done.returncode != 0
    assert killed.checkpoints() == ['iter_2.pth']
    for path in killed.folder.glob('rank*_iter2.pth'):  # done before the kill, to be done again
        path.unlink()
    done = killed.run('--resume')
    assert done.returncode == 0, done.stderr
    assert_same_runs(killed, whole)


@pytest.mark.parametrize('workers', [0, 2])
def test_sigterm_to_one_rank_stops_both_with_a_checkpoint(tmp_path, workers):
    runs = Runs(tmp_path / 'run', 2, workers, interval=1000)
    done = runs.run(fault='SIGTERM', rank=1, iterations=(2,))
    assert done.returncode == 0, done.stderr
    assert time.time() - float((runs.folder / 'time').read_text()) < 30
    assert runs.checkpoints() == ['iter_3.pth']
    assert not (runs.folder / 'rank0_iter3.pth').exists()
    done = runs.run('--resume')
    assert done.returncode == 0, done.stderr
    assert runs.checkpoints() == ['iter_3.pth', 'iter_6.pth']
    if workers:
        return
    whole = Runs(tmp_path / 'whole', 2, workers)
    assert whole.run().returncode == 0
    assert_same_runs(runs, whole)


def test_nan_on_one_rank_changes_nothing_on_any(tmp_path):
    runs = Runs(tmp_path / 'run', 2, 0)
    done = runs.run(fault='nan', rank=1, iterations=(2, 4))
    assert done.returncode == 0, done.stderr
    for iteration in range(1, 6):
        changed = iteration not in (2, 4)
        for rank in range(2):
            before, after = runs.record(rank, iteration - 1), runs.record(rank, iteration)
            for part in ('weights', 'optimizer'):
                if changed:
                    with pytest.raises(AssertionError):
                        assert_close(after[part], before[part], rtol=0, atol=0)
                else:
                    assert_close(after[part], before[part], rtol=0, atol=0)
        assert_close(runs.record(0, iteration)['weights'], runs.record(1, iteration)['weights'], rtol=0, atol=0)


def test_nan_that_stays_stops_both_ranks(tmp_path):
    runs = Runs(tmp_path / 'run', 2, 0)
    done = runs.run(fault='nan', rank=1, iterations=(2, 3, 4, 5))
    assert done.returncode == 2
    assert 'loss or gradients of iteration 3 are not finite, the last of 2 in a row' in last_line(done)
    assert runs.checkpoints() == ['iter_2.pth']
    for rank in range(2):
        report = json.loads((runs.folder / 'work' / f'nonfinite_iter_3_rank{rank}.json').read_text())
        assert report['iteration'] == 3
        assert len(report['sample_idx']) == 8
        assert (report['losses']['loss'] == 'nan') or rank == 0


def test_two_ranks_are_not_resumed_by_one(tmp_path):
    runs = Runs(tmp_path / 'run', 2, 0)
    assert runs.run(fault='SIGTERM', iterations=(2,)).returncode == 0
    runs.ranks = 1
    done = runs.run('--resume')
    assert done.returncode == 2
    assert 'run with 2 ranks and batches of 8, this one has 1 and 8' in last_line(done)
    done = runs.run('--resume', options=['train_cfg.allow_other_ranks=True'])
    assert done.returncode == 0, done.stderr


def test_two_ranks_agree_while_every_width_and_depth_trains(tmp_path):
    """The demo's recipe, each rank with a deck of its own: one set of weights, which all of the space has a part in."""
    runs, iterations = Runs(tmp_path / 'run', 2, workers=0, interval=1000), 12
    done = runs.run(options=[f'train_cfg.max_iters={iterations}'])
    assert done.returncode == 0, done.stderr
    records = [[runs.record(rank, iteration) for iteration in range(iterations)] for rank in (0, 1)]
    for first, second in zip(*records):
        assert_close(first['weights'], second['weights'], rtol=0, atol=0)
        assert first['indices'] != second['indices']
    dealt = [record['subnet'] for rank in records for record in rank]
    assert {width for width, _ in dealt} == {48, 64, 80, 96}
    assert {depth for _, depth in dealt} == {3, 4, 5, 6}
    start, end = records[0][0]['weights'], records[0][-1]['weights']
    still = [name for name in start if start[name].is_floating_point() and torch.equal(start[name], end[name])]
    assert not still
