"""Linear probe of POA's ViT-S/16 (384x12) on ImageNet-1K: 13 learning rates in one run, 8 GPUs.

Paper: Pre-training Once for Models of All Sizes, ECCV 2024, https://arxiv.org/abs/2408.01031

    python tools/extract_subnet.py CHECKPOINT --subnet 384x12 -o subnets
    tools/dist_train.sh configs/probe/linear_poa-vit-s-p16_in1k.py 8

`accuracy/top1` is that of the best learning rate, `accuracy/best_lr`.
The paper's k-NN accuracy, for scale: 76.8. It has not been trained to the end with this code.
"""

_base_ = './_base_/linear_in1k.py'

from poa_mm.deploy.downstream import classifier, vit

model = classifier(vit('384x12', checkpoint='subnets/poa_384x12.safetensors'), frozen=True)
