# A Cascade Mask R-CNN small enough for a CPU, on scenes of Fashion-MNIST items of 128 x 128 pixels
# (tools/dataset_converters/fashion_scenes.py). What is smaller than for COCO is the image, the heads and the
# number of proposals; the parts and their losses are the same.
_base_ = './cascade-mask-rcnn_fpn_1x_coco.py'

from poa_mm.datasets.scenes import NUM_ITEM_CLASSES, semantic_classes

scenes = '{{$POA_SCENES:data/fashion_scenes}}'
data_root = scenes + '/coco/'
classes = semantic_classes('fashion_mnist')[:NUM_ITEM_CLASSES]
batch_size = 2
max_iters = 600
warmup_iters = 100

# --- model -----------------------------------------------------------------------------------
channels = 32
norm_cfg = dict(type='GN', num_groups=8)  # of FPN; without, its maps grew to 10,000 at this learning rate
sampler = dict(type='RandomSampler', num=32, pos_fraction=0.5, neg_pos_ub=-1, add_gt_as_proposals=True)
model = dict(
    data_preprocessor=dict(mean=[72.9] * 3, std=[90.0] * 3),  # the pre-training's
    rpn_head=dict(
        in_channels=channels,
        feat_channels=channels,
        anchor_generator=dict(scales=[4]),  # the items are 19 to 64 pixels long
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=channels, roi_layer=dict(sampling_ratio=2)),
        bbox_head=[
            dict(
                head,
                in_channels=channels,
                conv_out_channels=channels,
                fc_out_channels=8 * channels,
                num_classes=len(classes),
            )
            for head in _base_.bbox_heads
        ],
        mask_roi_extractor=dict(out_channels=channels, roi_layer=dict(sampling_ratio=2)),
        mask_head=dict(in_channels=channels, conv_out_channels=channels, num_convs=2, num_classes=len(classes)),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=256, max_per_img=64),
        rcnn=[dict(stage, sampler=sampler) for stage in _base_.model.train_cfg.rcnn],
    ),
    test_cfg=dict(rpn=dict(nms_pre=256, max_per_img=64)),
)

# --- data ------------------------------------------------------------------------------------
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
dataset = dict(data_root=data_root, metainfo=dict(classes=classes))
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=1,
    sampler=dict(type='InfiniteSampler'),
    dataset=dict(**dataset, filter_cfg=dict(min_size=0), pipeline=train_pipeline),
)
val_dataloader = dict(num_workers=1, dataset=dict(**dataset, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator

# --- optimisation ----------------------------------------------------------------------------
optim_wrapper = dict(optimizer=dict(lr=1e-3), clip_grad=dict(max_norm=5.0), paramwise_cfg=dict(layer_decay_rate=1.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=warmup_iters),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.01, by_epoch=False, begin=warmup_iters, end=max_iters),
]
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)

default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=max_iters),
)
log_processor = dict(by_epoch=False)
