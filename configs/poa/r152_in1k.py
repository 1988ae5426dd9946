"""POA, ResNet-152 supernet of 465 subnets, ImageNet-1K, 32 GPUs.

Paper: Pre-training Once for Models of All Sizes, ECCV 2024, https://arxiv.org/abs/2408.01031

    NNODES=4 NODE_RANK=... MASTER_ADDR=... tools/dist_train.sh configs/poa/r152_in1k.py 32

The supernet's bottlenecks are twice as wide as those of a ResNet-152, which is 64x3-8-36-3 here. ResNet-50 is
64x3-4-6-3 and ResNet-101 is 64x3-4-23-3, all of them with GroupNorm. The authors saw the run diverge without the
elastic student. This file is their recipe; it has not been trained to the end with this code.
"""

_base_ = './swinb_in1k.py'

from poa_mm.recipes import schedule

recipe = dict(**_base_.recipe)
recipe.update(
    batch_size=40,
    epochs=692,
    stretch=1.0,
    paramwise_cfg=dict(
        layer_decay_rate=0.95,
        flat_decay_mult=0.0,
        patch_embed_lr_mult=1.0,  # the authors' code slows down no stem of a ResNet,
        custom_keys={'.downsample.1.weight': dict(decay_mult=1.0)},  # and does not see that these are norms
    ),
)
optim_wrapper, param_scheduler, custom_hooks, train_cfg = schedule(**recipe)

# --- model -----------------------------------------------------------------------------------
model = dict(
    backbone=dict(
        _delete_=True,
        type='ElasticResNet',
        stage_blocks=[3, 8, 36, 3],
        mid_channels=128,
        widths=[64, 96, 128],
        depths=[3, list(range(4, 9)), list(range(6, 37)), 3],
        img_size=224,
    ),
    deck=dict(select_scale=(1, 2)),  # widths all alike, small depths more often
)
train_dataloader = dict(batch_size=recipe['batch_size'])
