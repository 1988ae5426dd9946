"""POA with a small Swin on emoji: 1,274 colour images of many things, in minutes on one CPU core.

    npm pack emoji-datasource-twitter@16.0.0
    python tools/dataset_converters/emoji.py emoji-datasource-twitter-16.0.0.tgz data/emoji
    python tools/train.py configs/poa/swint_emoji.py
    python tools/eval_knn.py configs/poa/swint_emoji.py work_dirs/swint_emoji/iter_2000.pth

The network and the recipe are those of `swint_fmnist.py`, in colour. POA_EMOJI is the folder, if it is another one.
`docs/evidence.md` has the scores; the classes, for scoring, are the nine categories of the package.
"""

_base_ = './swint_fmnist.py'

data_root = '{{$POA_EMOJI:data/emoji}}'

# --- model -----------------------------------------------------------------------------------
model = dict(
    data_preprocessor=dict(mean=[190.0] * 3, std=[80.0] * 3),
    backbone=dict(in_channels=3),
)

# --- data ------------------------------------------------------------------------------------
load = dict(type='SafeLoadImageFromFile')
jitter = dict(type='FastColorJitter', brightness=0.4, contrast=0.4, saturation=0.4, hue=0.05)
global_crop = dict(type='RandomAffineCrop', scale=32, crop_ratio_range=(0.6, 1.0))
local_crop = dict(type='RandomAffineCrop', scale=16, crop_ratio_range=(0.3, 0.8))
train_pipeline = [
    load,
    dict(type='FastMultiView', num_views=[2, 2], transforms=[[global_crop, jitter], [local_crop, jitter]]),
    dict(type='BlockMask', grid=2, prob=0.5, ratio=(0.25, 0.5), min_patches=1),
    dict(type='PackInputs'),
]
dataset = dict(_delete_=True, type='ImageFolder', data_root=data_root)
train_dataloader = dict(dataset=dict(**dataset, data_prefix='train', with_label=False, pipeline=train_pipeline))

# --- evaluation ------------------------------------------------------------------------------
knn_pipeline = [load, dict(type='Resize', scale=32, interpolation='area'), dict(type='PackInputs')]
class_root = f'{data_root}/train'
knn = dict(
    bank=dict(dataset=dict(**dataset, data_prefix='train', class_root=class_root, pipeline=knn_pipeline)),
    query=dict(dataset=dict(**dataset, data_prefix='test', class_root=class_root, pipeline=knn_pipeline)),
)

# --- tools/study.py --------------------------------------------------------------------------
study = dict(
    probe_iterations=500,
    labels_1=dict(iterations=100, lr=0.001),
    labels_10=dict(iterations=300, lr=0.001),
    labels_100=dict(iterations=1000, lr=0.001),
)
