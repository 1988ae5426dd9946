"""Cascade Mask R-CNN on COCO 2017, Swin-T cut out of POA's Swin-B, 1x (POA, arXiv 2408.01031).

    python tools/extract_subnet.py work_dirs/swinb_in1k/iter_216250.pth --subnet tiny -o subnets
    tools/dist_train.sh configs/detection/cascade-mask-rcnn_poa-swin-t_fpn_1x_coco.py 8

No score is known. Not trained to the end with this code.

12 epochs are 87,960 iterations of 16 images, 2 on each of 8 GPUs; `--amp` trains in mixed precision.
"""

_base_ = './_base_/cascade-mask-rcnn_fpn_1x_coco.py'

from poa_mm.deploy.downstream import detector, swin

model = detector(swin('96x6', checkpoint='subnets/poa_96x6.safetensors', drop_path_rate=0.1))
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=1.0))  # as is customary for Swin
