# One linear layer on the frozen backbone's last feature map: how linearly it separates the classes.
_base_ = './upernet_160k_ade20k-512x512.py'

model = dict(
    neck=None,
    decode_head=dict(
        _delete_=True,
        type='FCNHead',
        num_convs=0,
        concat_input=False,
        dropout_ratio=0.0,
        num_classes=150,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=None,
)
find_unused_parameters = True  # mmpretrain's Swin freezes itself after DDP has looked for what is trained
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), weight_decay=1e-4),
)
