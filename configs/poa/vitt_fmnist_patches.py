"""POA on Fashion-MNIST with patches of 4, 7 and 14 pixels in one supernet, on a CPU.

    POA_FMNIST=/path/to/fashion_mnist python tools/train.py configs/poa/vitt_fmnist_patches.py
    POA_FMNIST=... python tools/eval_knn.py CONFIG work_dirs/vitt_fmnist_patches/iter_500.pth

The network is that of `vitt_fmnist.py` with fewer subnets, and the recipe is shorter: some 4 minutes of one core. The
teacher and the intact student have patches of 7; the elastic student is dealt one of the three sizes. All crops have
28 pixels, which all three divide. `tools/patch_study.py` compares it with a supernet for each patch size.
"""

_base_ = './vitt_fmnist.py'

from poa_mm.recipes import schedule

recipe = dict(batch_size=64, max_iters=500, warmup_iters=50, ramp_iters=100, freeze_iters=100)
recipe.update(lr=0.003, lr_batch=64, min_lr=3e-5, warmup_start=0.01, betas=(0.9, 0.98), momentum=(0.98, 0.999))
optim_wrapper, param_scheduler, custom_hooks, train_cfg = schedule(**recipe)

model = dict(backbone=dict(widths=[48, 96], depths=[2, 4], patch_sizes=[4, 7, 14]))

# --- data ------------------------------------------------------------------------------------
global_crop = dict(type='RandomResizedCrop', scale=28, crop_ratio_range=(0.4, 1.0), interpolation='bicubic')
local_crop = dict(type='RandomResizedCrop', scale=28, crop_ratio_range=(0.15, 0.4), interpolation='bicubic')
flip = dict(type='RandomFlip', prob=0.5)
train_pipeline = [
    dict(type='MultiView', num_views=[2, 2], transforms=[[global_crop, flip], [local_crop, flip]]),
    dict(type='BlockMask', grid=4, prob=0.5, ratio=(0.1, 0.5), min_patches=1),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=recipe['batch_size'], dataset=dict(pipeline=train_pipeline))
knn = dict(bank=dict(dataset=dict(indices=20000)))
