import os
from functools import partial

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from shell import ROOT, run_tool
from torch.testing import assert_close

CONFIG = ROOT / 'configs' / 'poa' / 'vitt_digits.py'
dist_train = partial(run_tool, 'dist_train.sh')


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


HOOK = """
import copy
import torch
from mmengine.dist import all_reduce, get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, TRANSFORMS

@TRANSFORMS.register_module()
class MaskByIndex:
    def __init__(self, grid):
        self.grid = grid

    def __call__(self, results):
        mask = torch.zeros(2, self.grid**2, dtype=torch.bool)
        mask[:, : results['sample_idx'] % 4] = True
        results['mask'] = mask.view(2, self.grid, self.grid)
        return results

@HOOKS.register_module()
class DumpHook(Hook):
    def __init__(self, folder):
        self.folder = folder
        self.dealt = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.dealt.append(str(copy.copy(runner.model.module.deck).deal()))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        loss = outputs['loss'].detach().clone()
        all_reduce(loss, op='mean')
        if batch_idx == 0:
            torch.save(loss, f'{self.folder}/loss.pth')

    def after_train(self, runner):
        torch.save((self.dealt, runner.model.module.state_dict()), f'{self.folder}/rank{get_rank()}.pth')
"""
# Nothing random but the order of the images, which is the same: the global batch does not depend on the ranks.
RUN = """
_base_ = {base!r}
custom_imports = dict(imports=['poa_mm', 'dump_hook'])
custom_hooks = [*_base_.custom_hooks, dict(type='DumpHook', folder={folder!r})]
model = dict(koleo_weight=0.0, deck=dict(sync=True))
flip = dict(type='RandomFlip', prob=1.0)
crop = dict(type='CenterCrop', crop_size=4)
resize = dict(type='Resize', scale=({size}, {size}))
pipeline = [
    dict(type='MultiView', num_views=[1, 1, 1], transforms=[[resize], [flip, resize], [crop, resize]]),
    dict(type='MaskByIndex', grid={grid}),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size={batch_size}, num_workers=0, persistent_workers=False,
                        dataset=dict(_delete_=True, type='Digits', pipeline=pipeline))
recipe = dict(gpus={gpus}, batch_size={batch_size})
train_cfg = dict(max_iters=3)
log_level = 'ERROR'
"""


def run_on(processes, name, folder):
    """Train on a global batch of 16.

    Returns the loss of the first step, the mean over the ranks, and the subnets and final weights of each rank.
    """
    base = CONFIG.with_stem(name)
    backbone = MODELS.build(Config.fromfile(base).model.backbone)
    (size, _), (grid, _) = backbone.img_size, backbone.mask_grid(backbone.img_size)
    folder.mkdir()
    (folder / 'dump_hook.py').write_text(HOOK)
    config = folder / 'config.py'
    sizes = dict(size=size, grid=grid, batch_size=16 // processes, gpus=processes)
    config.write_text(RUN.format(base=str(base), folder=str(folder), **sizes))
    # A run after the ramps of the recipe would have started: every loss takes part.
    options = ['--cfg-options', 'custom_hooks.1.patch_loss_start=0', 'custom_hooks.1.freeze_prototypes_iters=0']
    done = dist_train(config, processes, '--work-dir', folder / 'work', *options, PYTHONPATH=str(folder))
    assert done.returncode == 0, done.stderr
    assert (folder / 'work' / 'iter_3.pth').is_file()
    return torch.load(folder / 'loss.pth'), [torch.load(folder / f'rank{rank}.pth') for rank in range(processes)]


OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ('swint_digits', 'resnet_digits')]


@pytest.mark.parametrize('name', ['vitt_digits', *OTHERS])
@pytest.mark.skipif(torch.cuda.is_available(), reason='about machines without a GPU')
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason='needs 2 processors')
def test_two_processes_train_as_one_and_agree(name, tmp_path):
    loss, ((dealt, first), (dealt_too, second)) = run_on(2, name, tmp_path / 'two')
    assert dealt == dealt_too
    assert_close(first, second, rtol=0, atol=0)
    expected, ((dealt_alone, alone),) = run_on(1, name, tmp_path / 'one')
    assert dealt == dealt_alone
    assert_close(loss, expected, rtol=0, atol=1e-4)
    assert first.keys() == alone.keys()


FROZEN = """
default_scope = 'mmpretrain'
custom_imports = dict(imports=['poa_mm'])
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(mean=[0.0] * 3, std=[255.0] * 3),
    backbone=dict(
        type='SwinTransformer', arch=dict(embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2]), img_size=8,
        patch_size=1, window_size=2, pad_small_map=True, frozen_stages=1,
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=64),
)
train_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='Digits', split='test', indices=32, pipeline=[dict(type='PackInputs')]),
)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=3)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
"""


@pytest.mark.slow
def test_a_swin_with_frozen_stages_on_two_ranks(tmp_path):
    (tmp_path / 'frozen.py').write_text(FROZEN)
    done = dist_train(tmp_path / 'frozen.py', 2, '--work-dir', tmp_path / 'work', CUDA_VISIBLE_DEVICES='')
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'find_unused_parameters = True: a Swin with frozen stages' in done.stdout + done.stderr
