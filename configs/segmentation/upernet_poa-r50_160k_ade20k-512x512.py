"""UperNet on ADE20K, ResNet-50 cut out of POA's ResNet-152, 160,000 iterations (POA, arXiv 2408.01031).

    python tools/extract_subnet.py work_dirs/r152_in1k/iter_692000.pth --subnet r50 -o subnets
    tools/dist_train.sh configs/segmentation/upernet_poa-r50_160k_ade20k-512x512.py 8

No score is known. Not trained to the end with this code.

16 images of 512 x 512 pixels in an iteration, 2 on each of 8 GPUs; `--amp` trains in mixed precision.
"""

_base_ = './_base_/upernet_160k_ade20k-512x512.py'

from poa_mm.deploy.downstream import resnet, segmentor

model = segmentor(resnet('64x3-4-6-3', checkpoint='subnets/poa_64x3-4-6-3.safetensors'))
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=1.0))  # as is customary for ResNet
