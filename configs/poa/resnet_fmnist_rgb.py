"""POA with a ResNet on Fashion-MNIST as a start for colour images, on a CPU: the pre-training of the detectors in
`docs/downstream.md`.

    POA_FMNIST=/path/to/fashion_mnist python tools/train.py configs/poa/resnet_fmnist_rgb.py
    POA_FMNIST=... python tools/eval_knn.py configs/poa/resnet_fmnist_rgb.py work_dirs/resnet_fmnist_rgb/iter_2000.pth

The recipe is that of `vitt_fmnist_rgb.py`. Items take up part of the image only, as the last feature map of 2 x 2 cells
has a stride of 32 pixels, and the teacher's temperatures are those of `resnet_digits.py`.

Seed 0, half an hour on one CPU core. k-NN accuracy (k = 20) of 16x1-2-3-1 by earlier code, 1,000 test images against
5,000: 0.706 (0.636 untrained, 0.811 pixels); all of them in front of textures: 0.431 (0.149 untrained, 0.318 pixels).
"""

_base_ = './vitt_fmnist_rgb.py'

from poa_mm.recipes import schedule

recipe = dict(**_base_.recipe)
recipe.update(max_iters=2000, teacher_temp=(0.02, 0.04))
optim_wrapper, param_scheduler, custom_hooks, train_cfg = schedule(**recipe)

# --- model -----------------------------------------------------------------------------------
model = dict(
    backbone=dict(
        _delete_=True,
        type='ElasticResNet',
        stage_blocks=[1, 2, 3, 1],
        mid_channels=16,
        widths=[8, 12, 16],
        depths=[1, [1, 2], [1, 2, 3], 1],
        **dict(stem_channels=16, base_channels=16, num_groups=4, img_size=48),
    ),
    deck=dict(select_scale=(1, 2)),
)

# --- data ------------------------------------------------------------------------------------
global_crop = dict(type='RandomResizedCrop', scale=32, crop_ratio_range=(0.4, 1.0), interpolation='bicubic')
place = dict(type='RandomCrop', crop_size=48, padding=12)
local_crop = dict(type='RandomResizedCrop', scale=32, crop_ratio_range=(0.15, 0.4), interpolation='bicubic')
rest = [dict(type='RandomFlip', prob=0.5), dict(type='RandomBackground', prob=0.5)]
train_pipeline = [
    dict(type='MultiView', num_views=[2, 2], transforms=[[global_crop, place, *rest], [local_crop, *rest]]),
    dict(type='BlockMask', grid=4, prob=0.5, ratio=(0.1, 0.3), min_patches=1),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
knn_pipeline = [dict(type='Resize', scale=32, interpolation='bicubic'), dict(type='Pad', size=(48, 48))]
knn_pipeline.append(dict(type='PackInputs'))
knn = dict(bank=dict(dataset=dict(pipeline=knn_pipeline)), query=dict(dataset=dict(pipeline=knn_pipeline)))
