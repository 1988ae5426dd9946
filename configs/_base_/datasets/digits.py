# Scikit-learn's handwritten digits, 8 x 8 pixels, 2 global and 2 local crops; 1,433 images to train, 364 to test.
data_preprocessor = dict(mean=[78.0] * 3, std=[95.0] * 3)

crop = dict(type='RandomResizedCrop', scale=8, crop_ratio_range=(0.6, 1.0), interpolation='bicubic')
local_crop = dict(type='RandomResizedCrop', scale=8, crop_ratio_range=(0.35, 0.6), interpolation='bicubic')
train_pipeline = [
    dict(type='MultiView', num_views=[2, 2], transforms=[[crop], [local_crop]]),
    dict(type='BlockMask', grid=2, prob=0.5, ratio=(0.25, 0.5), min_patches=1),  # one of the four patches
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    drop_last=True,
    sampler=dict(type='ResumableSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='Digits', split='train', pipeline=train_pipeline),
)

# --- evaluation ------------------------------------------------------------------------------
knn_loader = dict(batch_size=256, num_workers=0)
knn = dict(
    bank=dict(**knn_loader, dataset=dict(type='Digits', split='train', pipeline=[dict(type='PackInputs')])),
    query=dict(**knn_loader, dataset=dict(type='Digits', split='test', pipeline=[dict(type='PackInputs')])),
    ks=(10, 20),
    temperature=0.07,
)
