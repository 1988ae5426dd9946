"""k-NN of POA's ViT-L/16 (1024x24) on ImageNet-1K, without any training.

Paper: Pre-training Once for Models of All Sizes, ECCV 2024, https://arxiv.org/abs/2408.01031

    python tools/extract_subnet.py CHECKPOINT --subnet 1024x24 -o subnets
    python tools/eval_knn.py configs/probe/knn_poa-vit-l-p16_in1k.py

The paper's k-NN accuracy: 82.3. The supernet has not been trained to the end with this code.
"""

_base_ = './_base_/knn_in1k.py'

from poa_mm.deploy.downstream import vit

model = dict(backbone=vit('1024x24', checkpoint='subnets/poa_1024x24.safetensors'))
