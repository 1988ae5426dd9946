"""Fine-tuning of POA's ViT-L/16 (1024x24) on ImageNet-1K: 50 epochs, 8 GPUs.

Paper: Pre-training Once for Models of All Sizes, ECCV 2024, https://arxiv.org/abs/2408.01031

    python tools/extract_subnet.py CHECKPOINT --subnet 1024x24 -o subnets
    tools/dist_train.sh configs/probe/finetune_poa-vit-l-p16_in1k.py 8 --amp

The paper does not fine-tune on ImageNet; epochs, layer-wise decay and drop path are the customary ones of this size.
It has not been trained to the end with this code.
"""

_base_ = './_base_/finetune_in1k.py'

from poa_mm.deploy.downstream import classifier, vit

model = classifier(vit('1024x24', checkpoint='subnets/poa_1024x24.safetensors', drop_path_rate=0.2))
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.75))
train_cfg = dict(max_epochs=50)
