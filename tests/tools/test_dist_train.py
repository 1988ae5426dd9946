import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / 'configs' / 'poa' / 'vitt_digits.py'


def dist_train(*args, **env):
    return subprocess.run(
        [ROOT / 'tools' / 'dist_train.sh', *map(str, args)],
        env={**os.environ, 'PYTHON': sys.executable, **env},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    ('args', 'env', 'message'),
    [
        ((CONFIG,), {}, 'usage'),
        (('nope.py', 2), {}, "no config file 'nope.py'"),
        ((CONFIG, 0), {}, 'positive whole number'),
        ((CONFIG, 32), dict(NNODES='five'), 'NNODES must be'),
        ((CONFIG, 32), dict(NNODES='5'), '32 GPUs cannot be split evenly over 5 nodes'),
        ((CONFIG, 4096), {}, '4096'),
        ((CONFIG, 2), dict(NNODES='2'), 'needs MASTER_ADDR'),
        ((CONFIG, 2), dict(NNODES='2', MASTER_ADDR='localhost', NODE_RANK='2'), 'NODE_RANK from 0 to 1'),
    ],
)
def test_mistakes_are_named(args, env, message):
    done = dist_train(*args, **env)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason='about machines without a GPU')
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason='needs 2 processors')
def test_two_processes_train_and_agree(tmp_path):
    (tmp_path / 'dump_hook.py').write_text("""
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class DumpHook(Hook):
    def __init__(self, folder):
        self.folder = folder

    def after_train(self, runner):
        torch.save(runner.model.module.state_dict(), f'{self.folder}/rank{get_rank()}.pth')
""")
    config = tmp_path / 'config.py'
    config.write_text(f"""
_base_ = {str(CONFIG)!r}
custom_imports = dict(imports=['poa_mm', 'dump_hook'])
custom_hooks = [*_base_.custom_hooks, dict(type='DumpHook', folder={str(tmp_path)!r})]
train_dataloader = dict(batch_size=8)
train_cfg = dict(max_iters=3)
log_level = 'ERROR'
""")
    # A run after the ramps of the recipe would have started: every loss takes part.
    done = dist_train(
        config, 2, '--work-dir', tmp_path / 'work', '--cfg-options', 'custom_hooks.1.patch_loss_start=0',
        PYTHONPATH=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f'rank{rank}.pth') for rank in range(2))
    assert_close(first, second, rtol=0, atol=0)
    assert (tmp_path / 'work' / 'iter_3.pth').is_file()
