"""POA on Fashion-MNIST, 28 x 28 pixels: a step up from the digits, on a CPU.

    POA_FMNIST=/path/to/fashion_mnist python tools/train.py configs/poa/vitt_fmnist.py
    POA_FMNIST=... python tools/eval_knn.py configs/poa/vitt_fmnist.py work_dirs/vitt_fmnist/iter_3000.pth

The folder holds the four usual idx files, as mmpretrain's `FashionMNIST` reads them. The recipe is that of
`vitt_digits.py`, whose docstring says what differs from the paper's, with flips and more crops. It is not tuned.
`swint_fmnist.py` scores higher, mostly because random features of a Swin do already (docs/evidence.md).

k-NN accuracy on the test part after 20 minutes on 2 CPU cores, seed 0: from 0.798 (48x3) to 0.829 (96x4).
"""

_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/fashion_mnist.py']

from poa_mm.recipes import schedule

recipe = dict(batch_size=64, max_iters=3000, warmup_iters=200, ramp_iters=600, freeze_iters=600)
recipe.update(lr=0.003, lr_batch=64, min_lr=3e-5, warmup_start=0.01, betas=(0.9, 0.98), momentum=(0.98, 0.999))
optim_wrapper, param_scheduler, custom_hooks, train_cfg = schedule(**recipe)

# --- model -----------------------------------------------------------------------------------
normal = dict(type='TruncNormal', layer='Linear', bias=0.0)
model = dict(
    type='POA',
    data_preprocessor=_base_.normalisation,
    backbone=dict(
        type='ElasticVisionTransformer',
        arch=dict(embed_dims=96, num_layers=4, num_heads=6, feedforward_channels=192),
        **dict(widths=[48, 64, 80, 96], depths=[2, 3, 4], img_size=28, patch_size=7, in_channels=1),
        init_cfg=dict(**normal, std=0.04),
    ),
    head=dict(
        type='MultiPrototypeHead',
        **dict(num_prototypes=[64, 128], hidden_channels=128, bottleneck_channels=16),
        init_cfg=dict(**normal, std=0.1),
    ),
)

# --- data ------------------------------------------------------------------------------------
global_crop = dict(type='RandomResizedCrop', scale=28, crop_ratio_range=(0.4, 1.0), interpolation='bicubic')
local_crop = dict(type='RandomResizedCrop', scale=14, crop_ratio_range=(0.15, 0.4), interpolation='bicubic')
flip = dict(type='RandomFlip', prob=0.5)
train_pipeline = [
    dict(type='MultiView', num_views=[2, 4], transforms=[[global_crop, flip], [local_crop, flip]]),
    dict(type='BlockMask', grid=4, prob=0.5, ratio=(0.1, 0.5), min_patches=1),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=recipe['batch_size'], dataset=dict(pipeline=train_pipeline))
knn_loader = dict(batch_size=512, dataset=dict(pipeline=[dict(type='PackInputs')]))
knn = dict(bank=knn_loader, query=knn_loader)
