# An UperNet small enough for a CPU, on scenes of Fashion-MNIST items of 128 x 128 pixels
# (tools/dataset_converters/fashion_scenes.py).
_base_ = './upernet_160k_ade20k-512x512.py'

from poa_mm.datasets.scenes import semantic_classes

scenes = '{{$POA_SCENES:data/fashion_scenes}}'
data_root = scenes + '/ade/ADEChallengeData2016'
classes = semantic_classes('fashion_mnist')
crop_size = (128, 128)
batch_size = 8
max_iters = 2000
warmup_iters = 100

# --- model -----------------------------------------------------------------------------------
channels = 64
model = dict(
    data_preprocessor=dict(size=crop_size, mean=[72.9] * 3, std=[90.0] * 3),  # the pre-training's
    decode_head=dict(channels=channels, num_classes=len(classes)),
    auxiliary_head=dict(channels=channels, num_classes=len(classes)),
    test_cfg=dict(_delete_=True, mode='whole'),
)

# --- data ------------------------------------------------------------------------------------
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='RandomResize', scale=crop_size, ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
dataset = dict(
    type='BaseSegDataset',  # ADE20KDataset knows its own 150 classes only
    data_root=data_root,
    metainfo=dict(classes=classes),
    img_suffix='.jpg',
    seg_map_suffix='.png',
    reduce_zero_label=True,
)
train_dataloader = dict(batch_size=batch_size, num_workers=1, dataset=dict(**dataset, pipeline=train_pipeline))
val_dataloader = dict(num_workers=1, dataset=dict(**dataset, pipeline=test_pipeline))
test_dataloader = val_dataloader

# --- optimisation ----------------------------------------------------------------------------
optim_wrapper = dict(optimizer=dict(lr=1e-3), clip_grad=dict(max_norm=5.0), paramwise_cfg=dict(layer_decay_rate=1.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=warmup_iters),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.01, by_epoch=False, begin=warmup_iters, end=max_iters),
]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 4)
default_hooks = dict(checkpoint=dict(interval=max_iters))
