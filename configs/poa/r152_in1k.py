"""POA, ResNet-152 supernet of 465 subnets, ImageNet-1K, 32 GPUs.

Paper: Pre-training Once for Models of All Sizes, ECCV 2024, https://arxiv.org/abs/2408.01031

    NNODES=4 NODE_RANK=... MASTER_ADDR=... tools/dist_train.sh configs/poa/r152_in1k.py 32

The supernet's bottlenecks are twice as wide as those of a ResNet-152, which is 64x3-8-36-3 here. ResNet-50 is
64x3-4-6-3 and ResNet-101 is 64x3-4-23-3, all of them with GroupNorm. The authors saw the run diverge without the
elastic student. This file is their recipe; it has not been trained to the end with this code.
"""

_base_ = './swinb_in1k.py'

gpus = 32
batch_size = 40  # images a GPU
epoch_iters = 1000
max_iters = 692 * epoch_iters
warmup_iters = 30 * epoch_iters

# --- model -----------------------------------------------------------------------------------
model = dict(
    backbone=dict(
        _delete_=True,
        type='ElasticResNet',
        stage_blocks=[3, 8, 36, 3],
        mid_channels=128,
        widths=[64, 96, 128],
        depths=[3, list(range(4, 9)), list(range(6, 37)), 3],
        img_size=224,
    ),
    deck=dict(select_scale=(1, 2)),  # widths all alike, small depths more often
)
train_dataloader = dict(batch_size=batch_size)

# --- optimisation ----------------------------------------------------------------------------
base_lr = 0.004 * (gpus * batch_size / 1024) ** 0.5
optim_wrapper = dict(
    optimizer=dict(lr=base_lr),
    paramwise_cfg=dict(
        layer_decay_rate=0.95,
        patch_embed_lr_mult=1.0,  # the authors' code slows down no stem of a ResNet,
        custom_keys={'.downsample.1.weight': dict(decay_mult=1.0)},  # and does not see that these are norms
    ),
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
        eta_min_ratio=10,  # 0.04 to 0.4, and 0 stays 0
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
        teacher_temp_iters=30 * epoch_iters,
        patch_loss_start=30 * epoch_iters,
        freeze_prototypes_iters=epoch_iters,
    ),
    dict(type='SupernetCheckpointHook'),
]
train_cfg = dict(max_iters=max_iters)
