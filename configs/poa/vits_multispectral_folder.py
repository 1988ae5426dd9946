"""POA on a folder of images with other bands than red, green and blue, or more than 8 bits; ViT-S/16, one GPU.

    python tools/inspect_images.py FOLDER                   # suggests the numbers below
    python tools/train.py configs/poa/vits_multispectral_folder.py --data FOLDER [--epochs N] [--batch-size B]

Reads TIFF files with any number of bands, `.npy` arrays and grey images of 16 bits. Copy this file and put in what
`inspect_images` says: the numbers here are those of Sentinel-2's 13 bands on a scale of 12 bits, roughly. Values keep
their precision until they are normalised. Of the paper's augmentations, hue, saturation and grey are left out.
"""

_base_ = 'vits_folder.py'

in_channels = 13
value_range = (0, 4095)  # what becomes 0 and 255, or a pair for each band; mean and std are on that scale
mean = [84.0, 70.0, 65.0, 59.0, 75.0, 125.0, 148.0, 143.0, 161.0, 46.0, 1.0, 113.0, 70.0]
std = [15.0, 21.0, 25.0, 37.0, 35.0, 54.0, 68.0, 70.0, 77.0, 25.0, 1.0, 62.0, 47.0]
extensions = ('.tif', '.tiff', '.npy', '.png')

load = dict(type='LoadBands', in_channels=in_channels, value_range=value_range)
flip_and_light = [
    dict(type='FastRandomFlip', prob=0.5),
    dict(type='RandomApply', transforms=[dict(type='FastColorJitter', brightness=0.4, contrast=0.4)], prob=0.8),
]
global_crop, local_crop, blur = _base_.global_crop, _base_.local_crop, _base_.blur
train_pipeline = [
    load,
    dict(
        type='FastMultiView',
        num_views=[1, 1, 8],
        transforms=[
            [global_crop, *flip_and_light, dict(**blur, prob=1.0)],
            [global_crop, *flip_and_light, dict(**blur, prob=0.1), dict(type='Solarize', thr=128, prob=0.2)],
            [local_crop, *flip_and_light, dict(**blur, prob=0.5)],
        ],
    ),
    dict(type='BlockMask', grid=14, prob=0.5, ratio=(0.1, 0.5)),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(extensions=extensions, pipeline=train_pipeline))

data_preprocessor = dict(_delete_=True, type='MultiBandDataPreprocessor', mean=mean, std=std, value_range=value_range)
model = dict(data_preprocessor=data_preprocessor, backbone=dict(in_channels=in_channels))

edge = dict(type='ResizeEdge', scale=256, edge='short', backend='cv2', interpolation='bicubic')
class_pipeline = [load, edge, dict(type='CenterCrop', crop_size=224), dict(type='PackInputs')]
knn_loader = dict(dataset=dict(extensions=extensions, pipeline=class_pipeline))
knn = dict(bank=knn_loader, query=knn_loader)
