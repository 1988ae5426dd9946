"""POA, ViT-L/16 supernet of 143 subnets, ImageNet-1K, 32 GPUs.

Paper: Pre-training Once for Models of All Sizes, ECCV 2024, https://arxiv.org/abs/2408.01031

    NNODES=4 NODE_RANK=... MASTER_ADDR=... tools/dist_train.sh configs/poa/vitl_in1k.py 32

The paper's k-NN accuracy on ImageNet-1K: ViT-S/16 (384x12) 76.8, ViT-B/16 (768x12) 80.9, ViT-L/16
(1024x24) 82.3. This file is the authors' recipe; it has not been trained to the end with this code.
"""

_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/in1k_multicrop.py']

from poa_mm.recipes import schedule

recipe = dict(
    gpus=32,
    batch_size=50,  # images a GPU
    images=1281167,
    epochs=346,
    warmup_epochs=10,
    ramp_epochs=30,  # of the teacher's temperature; then the patch loss starts
    freeze_epochs=1,  # of the prototypes
    stretch=1 / 0.78,  # the cosines are laid out over more than the run and cut at its end (`iter_num_scale`)
    amp='float16',
    paramwise_cfg=dict(layer_decay_rate=0.9, patch_embed_lr_mult=0.2, flat_decay_mult=0.0),
)
optim_wrapper, param_scheduler, custom_hooks, train_cfg = schedule(**recipe)
train_dataloader = dict(batch_size=recipe['batch_size'])

# --- model -----------------------------------------------------------------------------------
model = dict(
    type='POA',
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(
        type='ElasticVisionTransformer',
        arch='large',
        widths=list(range(384, 1025, 64)),
        depths=list(range(12, 25)),
        img_size=224,
        patch_size=16,
        drop_path_rate=0.2,
        layer_scale_init_value=1e-5,
    ),
    head=dict(
        type='MultiPrototypeHead',
        **dict(num_prototypes=[8192, 16384, 32768, 65536], hidden_channels=2048, bottleneck_channels=256),
    ),
    **dict(weight_is=0.8, weight_es1=0.2, weight_es2=0.2, koleo_weight=0.1, student_temp=0.1),  # lambda is 0.8
)
