"""A run small enough for a test: digits, a tiny elastic ViT, a handful of iterations."""

import copy
import itertools

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

CROP = dict(type='RandomResizedCrop', scale=8, crop_ratio_range=(0.5, 1.0))
CONFIG = dict(
    default_scope='mmpretrain',
    model=dict(
        type='POA',
        data_preprocessor=dict(type='SelfSupDataPreprocessor', mean=[78.0] * 3, std=[95.0] * 3),
        backbone=dict(
            type='ElasticVisionTransformer',
            arch=dict(embed_dims=32, num_layers=3, num_heads=4, feedforward_channels=64),
            widths=[16, 24, 32],
            depths=[2, 3],
            img_size=8,
            patch_size=4,
        ),
        head=dict(type='MultiPrototypeHead', num_prototypes=[8, 16], hidden_channels=32, bottleneck_channels=16),
    ),
    train_dataloader=dict(
        batch_size=8,
        num_workers=0,
        drop_last=True,
        sampler=dict(type='InfiniteSampler', shuffle=True),
        collate_fn=dict(type='default_collate'),
        dataset=dict(
            type='Digits',
            pipeline=[
                dict(type='MultiView', num_views=[2, 1], transforms=[[CROP], [CROP]]),
                dict(type='BlockMask', grid=2, min_patches=1),
                dict(type='PackInputs'),
            ],
        ),
    ),
    optim_wrapper=dict(
        type='POAOptimWrapper',
        optimizer=dict(type='AdamW', lr=0.01, weight_decay=0.04),
        clip_grad=dict(max_norm=1.5),
        constructor='POAOptimWrapperConstructor',
        paramwise_cfg=dict(layer_decay_rate=0.9, patch_embed_lr_mult=0.2, flat_decay_mult=0.0),
    ),
    custom_hooks=[dict(type='TeacherEMAHook'), dict(type='POAScheduleHook'), dict(type='SupernetCheckpointHook')],
    default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1000)),
    train_cfg=dict(type='IterBasedTrainLoop', max_iters=4),
    log_processor=dict(by_epoch=False),
    log_level='ERROR',
    randomness=dict(seed=0),
)


EXPERIMENTS = itertools.count()  # runs of one name in one second would share mmengine's log


@pytest.fixture
def run_config(tmp_path):
    """The config as a dict to change before building a runner."""
    return Config(copy.deepcopy(CONFIG) | dict(work_dir=str(tmp_path / 'work')))


@pytest.fixture
def build_runner():
    def build(cfg, hooks=()):
        runner = Runner.from_cfg(Config(cfg.to_dict() | dict(experiment_name=f'test-{next(EXPERIMENTS)}')))
        for hook in hooks:
            runner.register_hook(hook, priority='VERY_HIGH')
        return runner

    return build
