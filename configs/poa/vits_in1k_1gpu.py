"""POA, ViT-S/16 supernet of 35 subnets, ImageNet-1K, one GPU with gradient accumulation.

    python tools/train.py configs/poa/vits_in1k_1gpu.py

Not a recipe of the paper, and no score is known. What differs from `vitl_in1k.py`, beside the smaller
supernet and 100 epochs:

- An update averages the gradients of 16 batches of 64 images. Its loss is not that of one batch of
  1,024: Sinkhorn-Knopp balances and KoLeo spreads the 64 images of a batch only.
- With 128 class tokens in a batch, tens of thousands of prototypes could not be balanced; the four
  heads have 1,024 to 8,192.
- Each of the 16 batches deals a subnet of its own, as 16 GPUs would.
- Schedules count iterations (batches), not updates.
"""

_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/in1k_multicrop.py']

batch_size = 64
accumulate = 16
epoch_iters = 1281167 // (batch_size * accumulate) * accumulate
max_iters = 100 * epoch_iters
warmup_iters = 10 * epoch_iters

# --- model -----------------------------------------------------------------------------------
model = dict(
    type='POA',
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(
        type='ElasticVisionTransformer',
        arch='deit-small',
        widths=list(range(128, 385, 64)),
        depths=list(range(6, 13)),
        img_size=224,
        patch_size=16,
        drop_path_rate=0.1,
        layer_scale_init_value=1e-5,
    ),
    head=dict(type='MultiPrototypeHead', num_prototypes=[1024, 2048, 4096, 8192]),
)
train_dataloader = dict(batch_size=batch_size)

# --- optimisation ----------------------------------------------------------------------------
base_lr = 0.004 * (accumulate * batch_size / 1024) ** 0.5
optim_wrapper = dict(
    type='POAAmpOptimWrapper',
    dtype='float16',
    accumulative_counts=accumulate,
    optimizer=dict(type='AdamW', lr=base_lr, betas=(0.9, 0.999), weight_decay=0.04),
    clip_grad=dict(max_norm=1.5),
    constructor='POAOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.9, patch_embed_lr_mult=0.2, flat_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=warmup_iters),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=2e-5 / base_lr,
        by_epoch=False,
        begin=warmup_iters,
        end=max_iters,
    ),
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
    dict(type='TeacherEMAHook', momentum=(0.992, 0.9999)),
    dict(
        type='POAScheduleHook',
        teacher_temp=(0.04, 0.07),
        teacher_temp_iters=10 * epoch_iters,
        patch_loss_start=10 * epoch_iters,
        freeze_prototypes_iters=epoch_iters,
    ),
    dict(type='SupernetCheckpointHook'),
]
train_cfg = dict(max_iters=max_iters)
