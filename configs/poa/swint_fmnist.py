"""POA with a small Swin on Fashion-MNIST, about 15 minutes on one CPU core: the pre-training of `docs/evidence.md`.

    POA_FMNIST=/path/to/fashion_mnist python tools/train.py configs/poa/swint_fmnist.py
    POA_FMNIST=... python tools/eval_knn.py configs/poa/swint_fmnist.py work_dirs/swint_fmnist/iter_2000.pth

The folder holds the four usual idx files, as mmpretrain's `FashionMNIST` reads them. That page has the scores,
those of the same networks pre-trained alone, those of raw pixels, and what was tried.
"""

_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/fashion_mnist.py']

from poa_mm.recipes import schedule

recipe = dict(batch_size=64, max_iters=2000, warmup_iters=50, ramp_iters=200, lr=0.002, lr_batch=64, min_lr=2e-5)
recipe.update(warmup_start=0.01, betas=(0.9, 0.98), momentum=(0.96, 0.998), teacher_temp=(0.02, 0.03))
optim_wrapper, param_scheduler, custom_hooks, train_cfg = schedule(**recipe)

# --- model -----------------------------------------------------------------------------------
model = dict(
    type='POA',
    data_preprocessor=dict(type='SelfSupDataPreprocessor', **_base_.normalisation),
    backbone=dict(
        type='ElasticSwinTransformer',
        arch=dict(embed_dims=32, depths=[1, 1, 3, 1], num_heads=[4, 8, 16, 32]),
        **dict(widths=[16, 24, 32], depths=[1, 2, 3], img_size=32, patch_size=4, window_size=2, in_channels=1),
    ),
    head=dict(
        type='MultiPrototypeHead',
        **dict(num_prototypes=[256, 512], hidden_channels=256, bottleneck_channels=64),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.1, bias=0.0),
    ),
    deck=dict(select_scale=2),
)

# --- data ------------------------------------------------------------------------------------
levels = dict(type='FastColorJitter', brightness=0.8, contrast=0.8)
global_crop = dict(type='RandomAffineCrop', scale=32, crop_ratio_range=(0.6, 1.0))
local_crop = dict(type='RandomAffineCrop', scale=16, crop_ratio_range=(0.3, 0.8))
train_pipeline = [
    dict(type='FastMultiView', num_views=[2, 2], transforms=[[global_crop, levels], [local_crop, levels]]),
    dict(type='BlockMask', grid=2, prob=0.5, ratio=(0.25, 0.5), min_patches=1),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=recipe['batch_size'], dataset=dict(pipeline=train_pipeline))
knn_pipeline = [dict(type='Resize', scale=32, interpolation='bilinear'), dict(type='PackInputs')]
knn = dict(bank=dict(dataset=dict(pipeline=knn_pipeline)), query=dict(dataset=dict(pipeline=knn_pipeline)))
study = dict(labels_1=dict(iterations=300, lr=0.001), labels_10=dict(iterations=1000, lr=0.001))  # tools/study.py
study.update(labels_100=dict(iterations=4000, lr=0.001))
