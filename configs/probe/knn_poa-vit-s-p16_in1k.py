"""k-NN of POA's ViT-S/16 (384x12) on ImageNet-1K, without any training.

Paper: Pre-training Once for Models of All Sizes, ECCV 2024, https://arxiv.org/abs/2408.01031

    python tools/extract_subnet.py CHECKPOINT --subnet 384x12 -o subnets
    python tools/eval_knn.py configs/probe/knn_poa-vit-s-p16_in1k.py

The paper's k-NN accuracy: 76.8. The supernet has not been trained to the end with this code.
"""

_base_ = './_base_/knn_in1k.py'

from poa_mm.deploy.downstream import vit

model = dict(backbone=vit('384x12', checkpoint='subnets/poa_384x12.safetensors'))
