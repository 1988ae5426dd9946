"""Linear segmentation of ADE20K, frozen ViT-L of POA, the whole teacher, 160,000 iterations (POA, arXiv 2408.01031).

    python tools/extract_subnet.py work_dirs/vitl_in1k/iter_276800.pth --subnet large -o subnets
    tools/dist_train.sh configs/segmentation/linear_poa-vit-l-p16_160k_ade20k-512x512.py 8

No score is known. Not trained to the end with this code.

16 images of 512 x 512 pixels in an iteration, 2 on each of 8 GPUs; only 153,750 parameters are trained.
"""

_base_ = './_base_/linear_160k_ade20k-512x512.py'

from poa_mm.deploy.downstream import linear_segmentor, vit

model = linear_segmentor(vit('1024x24', checkpoint='subnets/poa_1024x24.safetensors'))
