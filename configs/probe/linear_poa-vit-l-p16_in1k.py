"""Linear probe of POA's ViT-L/16 (1024x24) on ImageNet-1K: 13 learning rates in one run, 8 GPUs.

Paper: Pre-training Once for Models of All Sizes, ECCV 2024, https://arxiv.org/abs/2408.01031

    python tools/extract_subnet.py CHECKPOINT --subnet 1024x24 -o subnets
    tools/dist_train.sh configs/probe/linear_poa-vit-l-p16_in1k.py 8

`accuracy/top1` is that of the best learning rate, `accuracy/best_lr`.
The paper's linear accuracy: 83.6. It has not been trained to the end with this code.
"""

_base_ = './_base_/linear_in1k.py'

from poa_mm.deploy.downstream import classifier, vit

model = classifier(vit('1024x24', checkpoint='subnets/poa_1024x24.safetensors'), frozen=True)
