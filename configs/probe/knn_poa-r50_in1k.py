"""k-NN of POA's ResNet-50 (64x3-4-6-3) on ImageNet-1K, without any training.

Paper: Pre-training Once for Models of All Sizes, ECCV 2024, https://arxiv.org/abs/2408.01031

    python tools/extract_subnet.py CHECKPOINT --subnet 64x3-4-6-3 -o subnets
    python tools/eval_knn.py configs/probe/knn_poa-r50_in1k.py

No score is known. The supernet has not been trained to the end with this code.
"""

_base_ = './_base_/knn_in1k.py'

from poa_mm.deploy.downstream import resnet

model = dict(backbone=resnet('64x3-4-6-3', checkpoint='subnets/poa_64x3-4-6-3.safetensors'))
