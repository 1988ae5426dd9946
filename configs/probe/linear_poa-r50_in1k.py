"""Linear probe of POA's ResNet-50 (64x3-4-6-3) on ImageNet-1K: 13 learning rates in one run, 8 GPUs.

Paper: Pre-training Once for Models of All Sizes, ECCV 2024, https://arxiv.org/abs/2408.01031

    python tools/extract_subnet.py CHECKPOINT --subnet 64x3-4-6-3 -o subnets
    tools/dist_train.sh configs/probe/linear_poa-r50_in1k.py 8

`accuracy/top1` is that of the best learning rate, `accuracy/best_lr`.
No score is known. It has not been trained to the end with this code.
"""

_base_ = './_base_/linear_in1k.py'

from poa_mm.deploy.downstream import classifier, resnet

model = classifier(resnet('64x3-4-6-3', checkpoint='subnets/poa_64x3-4-6-3.safetensors'), frozen=True)
