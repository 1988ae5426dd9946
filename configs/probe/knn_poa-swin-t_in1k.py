"""k-NN of POA's Swin-T (96x6) on ImageNet-1K, without any training.

Paper: Pre-training Once for Models of All Sizes, ECCV 2024, https://arxiv.org/abs/2408.01031

    python tools/extract_subnet.py CHECKPOINT --subnet 96x6 -o subnets
    python tools/eval_knn.py configs/probe/knn_poa-swin-t_in1k.py

No score is known. The supernet has not been trained to the end with this code.
"""

_base_ = './_base_/knn_in1k.py'

from poa_mm.deploy.downstream import swin

model = dict(backbone=swin('96x6', checkpoint='subnets/poa_96x6.safetensors'))
