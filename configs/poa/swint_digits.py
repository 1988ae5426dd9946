"""POA with a small Swin on scikit-learn's handwritten digits, anywhere in the image: for tests, not a demo yet.

It runs, but does not learn: the class loss settles at that of equal outputs for all images (within 300 steps with the
settings of `vitt_digits.py`; with those below, it was still there after 150).
"""

_base_ = './vitt_digits.py'

ramp_iters = 300

# --- model -----------------------------------------------------------------------------------
model = dict(
    backbone=dict(
        _delete_=True,
        type='ElasticSwinTransformer',
        arch=dict(embed_dims=24, depths=[1, 1, 4, 1], num_heads=[3, 6, 12, 24]),
        widths=[16, 24],
        depths=[2, 3, 4],
        img_size=16,
        patch_size=2,
        window_size=2,
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.04, bias=0.0),
    ),
    deck=dict(select_scale=2),
)

# --- data ------------------------------------------------------------------------------------
place = dict(type='RandomCrop', crop_size=16, padding=7)
crop = dict(type='RandomResizedCrop', scale=8, crop_ratio_range=(0.6, 1.0), interpolation='bicubic')
local_crop = dict(type='RandomResizedCrop', scale=8, crop_ratio_range=(0.35, 0.6), interpolation='bicubic')
train_pipeline = [
    dict(type='MultiView', num_views=[2, 2], transforms=[[crop, place], [local_crop]]),
    dict(type='BlockMask', grid=2, prob=0.5, ratio=(0.25, 0.5), min_patches=1),  # one of the four patches
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

# --- optimisation ----------------------------------------------------------------------------
custom_hooks = [
    dict(type='TeacherEMAHook', momentum=(0.98, 0.999)),
    dict(
        type='POAScheduleHook',
        # Two views of a digit in different places are hardly alike at first. The heads settle on one output for every
        # image unless the likeness of the views is more than the teacher's temperature over the student's, 0.1.
        teacher_temp=(0.02, 0.04),
        teacher_temp_iters=ramp_iters,
        patch_loss_start=ramp_iters,
        freeze_prototypes_iters=ramp_iters,
    ),
    dict(type='SupernetCheckpointHook'),
]

# --- evaluation ------------------------------------------------------------------------------
# One process that reads: its random numbers, and so the places, are the same each time.
knn_loader = dict(num_workers=1, dataset=dict(pipeline=[place, dict(type='PackInputs')]))
knn = dict(bank=knn_loader, query=knn_loader)
