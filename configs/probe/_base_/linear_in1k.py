# Linear probes of a frozen backbone's class feature on ImageNet-1K: a sweep over learning rates in one run.
# The customary recipe of DINO, iBOT and DINOv2: SGD without weight decay, cosine, crops and flips only.
_base_ = ['mmpretrain::_base_/datasets/imagenet_bs32_pil_bicubic.py', 'mmpretrain::_base_/default_runtime.py']

custom_imports = dict(imports=['poa_mm'], allow_failed_imports=False)
custom_hooks = [dict(type='StrictPretrainedHook')]

gpus = 8
batch_size = 128  # images a GPU

model = dict(
    type='ImageClassifier',
    head=dict(
        type='LinearSweepHead',
        num_classes=1000,
        # DINOv2's 13 learning rates, which count for 256 images.
        lrs=[
            lr * gpus * batch_size / 256
            for lr in (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
        ],
    ),
)
find_unused_parameters = True  # mmpretrain's Swin freezes itself after DDP has looked for what is trained

loader = dict(batch_size=batch_size, num_workers=10, persistent_workers=True, pin_memory=True)
train_dataloader = dict(**loader, drop_last=True)
val_dataloader = dict(**loader)
test_dataloader = dict(**loader)
val_evaluator = dict(_delete_=True, type='SweepAccuracy')
test_evaluator = val_evaluator

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=1.0, momentum=0.9, weight_decay=0.0),  # lr: a factor on the head's
    constructor='LinearSweepOptimWrapperConstructor',
)
auto_scale_lr = dict(base_batch_size=gpus * batch_size, gpus=gpus)
param_scheduler = dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, convert_to_iter_based=True)
train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=1)
val_cfg = dict()
test_cfg = dict()

default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1, save_best='accuracy/top1', rule='greater'),
)
randomness = dict(seed=0, diff_rank_seed=True)
