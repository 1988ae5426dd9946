"""Fine-tuning of POA's ViT-B/16 (768x12) on ImageNet-1K: 100 epochs, 8 GPUs.

Paper: Pre-training Once for Models of All Sizes, ECCV 2024, https://arxiv.org/abs/2408.01031

    python tools/extract_subnet.py CHECKPOINT --subnet 768x12 -o subnets
    tools/dist_train.sh configs/probe/finetune_poa-vit-b-p16_in1k.py 8 --amp

The paper does not fine-tune on ImageNet; epochs, layer-wise decay and drop path are the customary ones of this size.
It has not been trained to the end with this code.
"""

_base_ = './_base_/finetune_in1k.py'

from poa_mm.deploy.downstream import classifier, vit

model = classifier(vit('768x12', checkpoint='subnets/poa_768x12.safetensors', drop_path_rate=0.1))
