"""Fine-tuning of POA's ViT-S/16 (384x12) on ImageNet-1K: 200 epochs, 8 GPUs.

Paper: Pre-training Once for Models of All Sizes, ECCV 2024, https://arxiv.org/abs/2408.01031

    python tools/extract_subnet.py CHECKPOINT --subnet 384x12 -o subnets
    tools/dist_train.sh configs/probe/finetune_poa-vit-s-p16_in1k.py 8 --amp

The paper does not fine-tune on ImageNet; epochs, layer-wise decay and drop path are the customary ones of this size.
It has not been trained to the end with this code.
"""

_base_ = './_base_/finetune_in1k.py'

from poa_mm.deploy.downstream import classifier, vit

model = classifier(vit('384x12', checkpoint='subnets/poa_384x12.safetensors', drop_path_rate=0.1))
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.75))
train_cfg = dict(max_epochs=200)
