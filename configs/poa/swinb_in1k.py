"""POA, Swin-B supernet of 39 subnets, ImageNet-1K, 32 GPUs.

Paper: Pre-training Once for Models of All Sizes, ECCV 2024, https://arxiv.org/abs/2408.01031

    NNODES=4 NODE_RANK=... MASTER_ADDR=... tools/dist_train.sh configs/poa/swinb_in1k.py 32

Swin-T is 96x6, Swin-S 96x18 and Swin-B 128x18, all with heads of 16 channels instead of Swin's usual 32. This file
is the authors' recipe; it has not been trained to the end with this code. One thing differs: the norm of the stem sees
the width in use, so that an extracted network is the one that was trained (`stem_norm` of `ElasticSwinTransformer`).
"""

_base_ = './vitl_in1k.py'

gpus = 32
batch_size = 64  # images a GPU
epoch_iters = 625
max_iters = 346 * epoch_iters
warmup_iters = 30 * epoch_iters
# The cosines are laid out over more than the run and cut at its end (`iter_num_scale`).
stretch = 1 / 0.9
cosine_iters = round(max_iters * stretch)

# --- model -----------------------------------------------------------------------------------
model = dict(
    backbone=dict(
        _delete_=True,
        type='ElasticSwinTransformer',
        arch='base',
        widths=[96, 112, 128],
        depths=list(range(6, 19)),
        img_size=224,
        drop_path_rate=0.2,
    ),
    deck=dict(select_scale=2),
)

# --- data ------------------------------------------------------------------------------------
train_pipeline = [
    *_base_.train_pipeline[:2],  # reading and views
    dict(type='BlockMask', grid=14, prob=0.5, ratio=(0.1, 0.3)),  # twice as fine as the last feature map
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=batch_size, dataset=dict(pipeline=train_pipeline))

# --- optimisation ----------------------------------------------------------------------------
base_lr = 0.004 * (gpus * batch_size / 1024) ** 0.5
optim_wrapper = dict(optimizer=dict(lr=base_lr))
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
