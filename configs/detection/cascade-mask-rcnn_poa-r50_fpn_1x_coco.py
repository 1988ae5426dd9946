"""Cascade Mask R-CNN on COCO 2017, ResNet-50 cut out of POA's ResNet-152, 1x (POA, arXiv 2408.01031).

    python tools/extract_subnet.py work_dirs/r152_in1k/iter_692000.pth --subnet r50 -o subnets
    tools/dist_train.sh configs/detection/cascade-mask-rcnn_poa-r50_fpn_1x_coco.py 8

No score is known. Not trained to the end with this code.

12 epochs are 87,960 iterations of 16 images, 2 on each of 8 GPUs; `--amp` trains in mixed precision.
"""

_base_ = './_base_/cascade-mask-rcnn_fpn_1x_coco.py'

from poa_mm.deploy.downstream import detector, resnet

model = detector(resnet('64x3-4-6-3', checkpoint='subnets/poa_64x3-4-6-3.safetensors'))
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=1.0))  # as is customary for ResNet
