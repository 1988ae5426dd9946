# End-to-end fine-tuning on ImageNet-1K: the customary recipe for self-supervised ViTs (BEiT, MAE, iBOT), for batches
# of 1024. A size sets the number of epochs, the layer-wise decay and the drop path; the schedule follows the epochs.
# Those below are ViT-B's, for subnets that have no config of their own.
_base_ = [
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py',  # RandAugment, random erasing
    'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py',
    'mmpretrain::_base_/default_runtime.py',
]

custom_imports = dict(imports=['poa_mm'], allow_failed_imports=False)
custom_hooks = [dict(type='StrictPretrainedHook')]

batch_size = 128  # images a GPU, of which there are 8
warmup_epochs = 5

model = dict(
    type='ImageClassifier',
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=2e-5),
    ),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)

loader = dict(batch_size=batch_size, num_workers=10, persistent_workers=True, pin_memory=True)
train_dataloader = dict(**loader, drop_last=True)
val_dataloader = dict(**loader)
test_dataloader = dict(**loader)

optim_wrapper = dict(
    optimizer=dict(lr=1e-3),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        layer_decay_rate=0.65,
        custom_keys={'.cls_token': dict(decay_mult=0.0), '.pos_embed': dict(decay_mult=0.0)},
    ),
)
auto_scale_lr = dict(base_batch_size=1024, gpus=8)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=warmup_epochs, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-6, by_epoch=True, begin=warmup_epochs, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=100)

default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1, save_best='accuracy/top1', rule='greater'),
)
randomness = dict(seed=0, diff_rank_seed=True)
