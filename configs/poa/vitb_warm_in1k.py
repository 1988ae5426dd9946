"""A short POA that starts from a ViT-B/16 which exists: 49 subnets, ImageNet-1K, one node of 8 GPUs.

    python tools/warm_start.py configs/poa/vitb_warm_in1k.py WEIGHTS -o data/vitb_start.pth --order taylor
    tools/dist_train.sh configs/poa/vitb_warm_in1k.py 8

Ours, not the paper's; not run at full size (docs/warm_start.md). The heads are new, and learn alone for an epoch.
`--cfg-options model.frozen_teacher=source` keeps the network that the run starts from as the teacher.
"""

_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/in1k_multicrop.py']

from poa_mm.recipes import schedule

recipe = dict(
    gpus=8,
    batch_size=128,  # images a GPU
    images=1281167,
    epochs=30,
    warmup_epochs=2,
    ramp_epochs=3,
    heads_epochs=1,
    lr=0.001,
    min_lr=1e-6,
    weight_decay=(0.04, 0.2),
    momentum=(0.996, 0.9999),
    amp='float16',
    paramwise_cfg=dict(layer_decay_rate=0.8, patch_embed_lr_mult=0.2, flat_decay_mult=0.0),
)
optim_wrapper, param_scheduler, custom_hooks, train_cfg = schedule(**recipe)
train_dataloader = dict(batch_size=recipe['batch_size'])
load_from = 'data/vitb_start.pth'
model = dict(
    type='POA',
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(
        type='ElasticVisionTransformer',
        arch='base',
        widths=list(range(384, 769, 64)),
        depths=list(range(6, 13)),
        drop_path_rate=0.1,
        layer_scale_init_value=1.0,  # and no collapse of what is trained already
    ),
    head=dict(type='MultiPrototypeHead', num_prototypes=[8192, 16384, 32768, 65536]),
)
