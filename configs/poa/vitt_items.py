"""POA on unlabelled pictures of single Fashion-MNIST items, 32 x 32 pixels, on a CPU: the pre-training of the
experiment in `docs/downstream.md`, as ImageNet's is for COCO.

    python tools/dataset_converters/fashion_scenes.py data/fashion_items --data-root /path/to/fashion_mnist \
        --train 20000 --val 2000 --size 32 --objects 1 1 --scale 0.5 0.95 --seed 1
    python tools/train.py configs/poa/vitt_items.py

`POA_ITEMS` names another folder. The recipe is that of `vitt_digits.py`, whose docstring says what differs from the
paper's. All views are grey and their crops are large: with colours, views of an image are recognised by the tint of
item and background, and with the paper's jitter and small crops nothing was learnt in the first 300 steps.
"""

_base_ = '../_base_/default_runtime.py'

data_root = '{{$POA_ITEMS:data/fashion_items}}'
max_iters = 2000
warmup_iters = 100
ramp_iters = 800

# --- model -----------------------------------------------------------------------------------
model = dict(
    type='POA',
    data_preprocessor=dict(
        type='SelfSupDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    backbone=dict(
        type='ElasticVisionTransformer',
        arch=dict(embed_dims=96, num_layers=6, num_heads=6, feedforward_channels=192),
        widths=[48, 64, 80, 96],
        depths=[4, 5, 6],
        img_size=32,
        patch_size=8,
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.04, bias=0.0),
    ),
    head=dict(
        type='MultiPrototypeHead',
        num_prototypes=[64, 128],
        hidden_channels=128,
        bottleneck_channels=16,
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.1, bias=0.0),
    ),
)

# --- data ------------------------------------------------------------------------------------
global_crop = dict(type='RandomResizedCrop', scale=32, crop_ratio_range=(0.6, 1.0), interpolation='bicubic')
local_crop = dict(type='RandomResizedCrop', scale=16, crop_ratio_range=(0.3, 0.6), interpolation='bicubic')
flip_and_colour = [
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='RandomApply',
        transforms=[dict(type='ColorJitter', brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05)],
        prob=0.8,
    ),
    dict(type='RandomGrayscale', prob=1.0, keep_channels=True, channel_weights=(0.114, 0.587, 0.2989)),
]
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='MultiView',
        num_views=[2, 4],
        transforms=[[global_crop, *flip_and_colour], [local_crop, *flip_and_colour]],
    ),
    dict(type='BlockMask', grid=4, prob=0.5, ratio=(0.1, 0.5), min_patches=1),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='CustomDataset',
        data_root=data_root,
        data_prefix='coco/train2017',
        with_label=False,
        pipeline=train_pipeline,
    ),
)

# --- optimisation ----------------------------------------------------------------------------
optim_wrapper = dict(
    type='POAOptimWrapper',
    optimizer=dict(type='AdamW', lr=0.003, betas=(0.9, 0.98), weight_decay=0.04),
    clip_grad=dict(max_norm=1.5),
    constructor='POAOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=1.0, flat_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=warmup_iters),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.01, by_epoch=False, begin=warmup_iters, end=max_iters),
    dict(
        type='CosineAnnealingParamScheduler',
        param_name='weight_decay',
        eta_min_ratio=10,
        by_epoch=False,
        begin=0,
        end=max_iters,
    ),
]
custom_hooks = [
    dict(type='TeacherEMAHook', momentum=(0.98, 0.999)),
    dict(
        type='POAScheduleHook',
        teacher_temp=(0.04, 0.07),
        teacher_temp_iters=ramp_iters,
        patch_loss_start=ramp_iters,
        freeze_prototypes_iters=ramp_iters,
    ),
    dict(type='SupernetCheckpointHook'),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters)
