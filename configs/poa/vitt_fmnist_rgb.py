"""POA on Fashion-MNIST as a start for colour images, on a CPU: the pre-training of the experiment in
`docs/downstream.md`.

    POA_FMNIST=/path/to/fashion_mnist python tools/train.py configs/poa/vitt_fmnist_rgb.py
    POA_FMNIST=... python tools/eval_knn.py configs/poa/vitt_fmnist_rgb.py work_dirs/vitt_fmnist_rgb/iter_3000.pth

The recipe is that of `vitt_fmnist.py`, with patches of 8 pixels, for strides that detection and segmentation can use,
depths from 4 up, for the four feature maps that they need, and colours. Every other view is tinted and in front of
textures of its own, so that only the item helps to recognise an image. The others stay grey on black, the easier task
to begin with.

k-NN accuracy on the test part after 20 minutes on one CPU core, seed 0: 0.788 (48x4), 0.823 (96x6).
"""

_base_ = './vitt_fmnist.py'

from poa_mm.recipes import schedule

recipe = dict(**_base_.recipe)
recipe.update(warmup_iters=100)
optim_wrapper, param_scheduler, custom_hooks, train_cfg = schedule(**recipe)

# --- model -----------------------------------------------------------------------------------
model = dict(
    data_preprocessor=dict(mean=[72.9] * 3, std=[90.0] * 3),
    backbone=dict(
        arch=dict(num_layers=6),
        depths=[4, 5, 6],
        img_size=32,
        patch_size=8,
        in_channels=3,
    ),
)

# --- data ------------------------------------------------------------------------------------
global_crop = dict(type='RandomResizedCrop', scale=32, crop_ratio_range=(0.4, 1.0), interpolation='bicubic')
local_crop = dict(type='RandomResizedCrop', scale=16, crop_ratio_range=(0.15, 0.4), interpolation='bicubic')
flip = dict(type='RandomFlip', prob=0.5)
background = dict(type='RandomBackground', prob=0.5)
train_pipeline = [
    dict(
        type='MultiView', num_views=[2, 4], transforms=[[global_crop, flip, background], [local_crop, flip, background]]
    ),
    dict(type='BlockMask', grid=4, prob=0.5, ratio=(0.1, 0.5), min_patches=1),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

# --- evaluation ------------------------------------------------------------------------------
knn_pipeline = [dict(type='Resize', scale=32, interpolation='bicubic'), dict(type='PackInputs')]
knn = dict(bank=dict(dataset=dict(pipeline=knn_pipeline)), query=dict(dataset=dict(pipeline=knn_pipeline)))
