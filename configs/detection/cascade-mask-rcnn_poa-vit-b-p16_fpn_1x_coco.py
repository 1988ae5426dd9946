"""Cascade Mask R-CNN on COCO 2017, ViT-B cut out of POA's ViT-L, 1x (POA, arXiv 2408.01031).

    python tools/extract_subnet.py work_dirs/vitl_in1k/iter_276800.pth --subnet base -o subnets
    tools/dist_train.sh configs/detection/cascade-mask-rcnn_poa-vit-b-p16_fpn_1x_coco.py 8

The paper's box AP: 52.4, with iBOT's recipe, which this follows. Not trained to the end with this code.

12 epochs are 87,960 iterations of 16 images, 2 on each of 8 GPUs; `--amp` trains in mixed precision.
"""

_base_ = './_base_/cascade-mask-rcnn_fpn_1x_coco.py'

from poa_mm.deploy.downstream import detector, vit

model = detector(vit('768x12', checkpoint='subnets/poa_768x12.safetensors', drop_path_rate=0.2))
