"""POA, ViT-L/16 supernet of 143 subnets, ImageNet-1K, 32 GPUs.

Paper: Pre-training Once for Models of All Sizes, ECCV 2024, https://arxiv.org/abs/2408.01031

    NNODES=4 NODE_RANK=... MASTER_ADDR=... tools/dist_train.sh configs/poa/vitl_in1k.py 32

The paper's k-NN accuracy on ImageNet-1K: ViT-S/16 (384x12) 76.8, ViT-B/16 (768x12) 80.9, ViT-L/16
(1024x24) 82.3. This file is the authors' recipe; it has not been trained to the end with this code.
"""

_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/in1k_multicrop.py']

gpus = 32
batch_size = 50  # images a GPU
epoch_iters = 800
max_iters = 346 * epoch_iters
warmup_iters = 10 * epoch_iters
# The cosines are laid out over more than the run and cut at its end (`iter_num_scale`).
stretch = 1 / 0.78
cosine_iters = round(max_iters * stretch)

# --- model -----------------------------------------------------------------------------------
model = dict(
    type='POA',
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(
        type='ElasticVisionTransformer',
        arch='large',
        widths=list(range(384, 1025, 64)),
        depths=list(range(12, 25)),
        img_size=224,
        patch_size=16,
        drop_path_rate=0.2,
        layer_scale_init_value=1e-5,
    ),
    head=dict(
        type='MultiPrototypeHead',
        num_prototypes=[8192, 16384, 32768, 65536],
        hidden_channels=2048,
        bottleneck_channels=256,
    ),
    weight_is=0.8,  # lambda
    weight_es1=0.2,  # 1 - lambda
    weight_es2=0.2,
    koleo_weight=0.1,
    student_temp=0.1,
)
train_dataloader = dict(batch_size=batch_size)

# --- optimisation ----------------------------------------------------------------------------
base_lr = 0.004 * (gpus * batch_size / 1024) ** 0.5
optim_wrapper = dict(
    type='POAAmpOptimWrapper',
    dtype='float16',
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
        T_max=cosine_iters - warmup_iters,
        by_epoch=False,
        begin=warmup_iters,
        end=max_iters,
    ),
    dict(
        type='CosineAnnealingParamScheduler',
        param_name='weight_decay',
        eta_min_ratio=10,  # 0.04 to 0.4, and 0 stays 0
        T_max=cosine_iters,
        by_epoch=False,
        begin=0,
        end=max_iters,
    ),
]
custom_hooks = [
    dict(type='TeacherEMAHook', momentum=(0.992, 0.9999), stretch=stretch),
    dict(
        type='POAScheduleHook',
        teacher_temp=(0.04, 0.07),
        teacher_temp_iters=30 * epoch_iters,
        patch_loss_start=30 * epoch_iters,
        freeze_prototypes_iters=epoch_iters,
    ),
    dict(type='SupernetCheckpointHook'),
]
train_cfg = dict(max_iters=max_iters)
