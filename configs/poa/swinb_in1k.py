"""POA, Swin-B supernet of 39 subnets, ImageNet-1K, 32 GPUs.

Paper: Pre-training Once for Models of All Sizes, ECCV 2024, https://arxiv.org/abs/2408.01031

    NNODES=4 NODE_RANK=... MASTER_ADDR=... tools/dist_train.sh configs/poa/swinb_in1k.py 32

Swin-T is 96x6, Swin-S 96x18 and Swin-B 128x18, all with heads of 16 channels instead of Swin's usual 32. This file
is the authors' recipe; it has not been trained to the end with this code. One thing differs: the norm of the stem sees
the width in use, so that an extracted network is the one that was trained (`stem_norm` of `ElasticSwinTransformer`).
"""

_base_ = './vitl_in1k.py'

from poa_mm.recipes import schedule

recipe = dict(**_base_.recipe)
recipe.update(batch_size=64, warmup_epochs=30, stretch=1 / 0.9)
optim_wrapper, param_scheduler, custom_hooks, train_cfg = schedule(**recipe)

# --- model -----------------------------------------------------------------------------------
model = dict(
    backbone=dict(
        _delete_=True,
        type='ElasticSwinTransformer',
        arch='base',
        widths=[96, 112, 128],
        depths=list(range(6, 19)),
        img_size=224,
        drop_path_rate=0.2,
    ),
    deck=dict(select_scale=2),
)

# --- data ------------------------------------------------------------------------------------
train_pipeline = [
    *_base_.train_pipeline[:2],  # reading and views
    dict(type='BlockMask', grid=14, prob=0.5, ratio=(0.1, 0.3)),  # twice as fine as the last feature map
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=recipe['batch_size'], dataset=dict(pipeline=train_pipeline))
