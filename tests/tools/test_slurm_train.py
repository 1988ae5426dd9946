import os
import sys
from functools import partial

import pytest
from shell import ROOT, run_tool

CONFIG = ROOT / 'configs' / 'poa' / 'vitt_digits.py'
slurm_train = partial(run_tool, 'slurm_train.sh')


@pytest.fixture
def path(tmp_path):
    """A PATH with an ``srun`` that prints its arguments and what it would hand down, a line each."""
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$@" "PYTHONPATH=$PYTHONPATH"\n')
    srun.chmod(0o755)
    return f'{tmp_path}:{os.environ["PATH"]}'


def test_command_line(path):
    options = dict(GPUS='32', GPUS_PER_NODE='4', CPUS_PER_TASK='6', SRUN_ARGS='--time=1:00 --signal=TERM@120')
    done = slurm_train('gpu', 'a job', CONFIG, '--resume', '--amp', PATH=path, **options)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    command = [sys.executable, '-u', f'{ROOT}/tools/train.py', str(CONFIG), '--launcher', 'slurm', '--resume', '--amp']
    assert lines[-1 - len(command) : -1] == command
    assert lines[: -1 - len(command)] == [
        '--partition=gpu',
        '--job-name=a job',
        '--gres=gpu:4',
        '--ntasks=32',
        '--ntasks-per-node=4',
        '--cpus-per-task=6',
        '--kill-on-bad-exit=1',
        '--time=1:00',
        '--signal=TERM@120',
    ]
    assert lines[-1].split('=')[1].split(':')[0] == str(ROOT)


@pytest.mark.parametrize(('gpus', 'here'), [('2', '2'), ('16', '8')])
def test_gpus_of_a_node(path, gpus, here):
    lines = slurm_train('gpu', 'job', CONFIG, PATH=path, GPUS=gpus).stdout.splitlines()
    assert {f'--gres=gpu:{here}', f'--ntasks={gpus}', f'--ntasks-per-node={here}'} <= set(lines)


@pytest.mark.parametrize(
    ('args', 'env', 'message'),
    [
        (('gpu', 'job'), {}, 'usage'),
        (('gpu', 'job', 'nope.py'), {}, "no config file 'nope.py'"),
        (('gpu', 'job', CONFIG), dict(GPUS='none'), 'GPUS must be'),
        (('gpu', 'job', CONFIG), dict(GPUS='12'), '12 GPUs cannot be split evenly over nodes of 8'),
        (('gpu', 'job', CONFIG), dict(GPUS_PER_NODE='0'), 'GPUS_PER_NODE must be'),
        (('gpu', 'job', CONFIG), dict(CPUS_PER_TASK='x'), 'CPUS_PER_TASK must be'),
    ],
)
def test_mistakes_are_named(path, args, env, message):
    done = slurm_train(*args, PATH=path, **env)
    assert done.returncode == 2
    assert message in done.stderr
    assert not done.stdout


def test_without_slurm(tmp_path):
    for tool in ('bash', 'dirname', 'env'):
        (tmp_path / tool).symlink_to(f'/usr/bin/{tool}')
    done = slurm_train('gpu', 'job', CONFIG, PATH=str(tmp_path))
    assert done.returncode == 2
    assert 'no srun' in done.stderr and 'dist_train.sh' in done.stderr
