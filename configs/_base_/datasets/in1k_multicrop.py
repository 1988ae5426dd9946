# ImageNet-1K without labels, 2 global and 8 local crops (POA, implementation details).
# Any folder of images works: it is searched for files, the sub-folders mean nothing.
train_root = 'data/imagenet/train'

data_preprocessor = dict(
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
)

# `Fast...` are mmpretrain's transforms of that name, more than four times as fast on the whole: benchmarks/README.md.
flip_and_colour = [
    dict(type='FastRandomFlip', prob=0.5),
    dict(
        type='RandomApply',
        transforms=[dict(type='FastColorJitter', brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)],
        prob=0.8,
    ),
    dict(type='FastRandomGrayscale', prob=0.2),
]
blur = dict(type='FastGaussianBlur', magnitude_range=(0.1, 2.0), magnitude_std='inf')
global_crop = dict(type='FastRandomResizedCrop', scale=224, crop_ratio_range=(0.32, 1.0), interpolation='bicubic')
local_crop = dict(type='FastRandomResizedCrop', scale=96, crop_ratio_range=(0.05, 0.32), interpolation='bicubic')
train_pipeline = [
    dict(type='SafeLoadImageFromFile'),  # bad images: docs/reliability.md
    dict(
        type='FastMultiView',
        num_views=[1, 1, 8],
        transforms=[
            [global_crop, *flip_and_colour, dict(**blur, prob=1.0)],
            [global_crop, *flip_and_colour, dict(**blur, prob=0.1), dict(type='Solarize', thr=128, prob=0.2)],
            [local_crop, *flip_and_colour, dict(**blur, prob=0.5)],
        ],
    ),
    dict(type='BlockMask', grid=14, prob=0.5, ratio=(0.1, 0.5)),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=50,
    num_workers=10,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type='ResumableSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='ImageFolder', data_prefix=train_root, with_label=False, pipeline=train_pipeline),
)

# --- k-NN evaluation with labels: tools/eval_knn.py ------------------------------------------
knn_pipeline = [
    dict(type='SafeLoadImageFromFile'),
    dict(type='ResizeEdge', scale=256, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
knn_loader = dict(batch_size=128, num_workers=10)
knn = dict(
    bank=dict(
        **knn_loader,
        dataset=dict(type='ImageNet', data_root='data/imagenet', split='train', pipeline=knn_pipeline),
    ),
    query=dict(
        **knn_loader,
        dataset=dict(type='ImageNet', data_root='data/imagenet', split='val', pipeline=knn_pipeline),
    ),
    ks=(10, 20),
    temperature=0.07,
)
