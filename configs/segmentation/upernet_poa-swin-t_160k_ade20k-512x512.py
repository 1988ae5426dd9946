"""UperNet on ADE20K, Swin-T cut out of POA's Swin-B, 160,000 iterations (POA, arXiv 2408.01031).

    python tools/extract_subnet.py work_dirs/swinb_in1k/iter_216250.pth --subnet tiny -o subnets
    tools/dist_train.sh configs/segmentation/upernet_poa-swin-t_160k_ade20k-512x512.py 8

No score is known. Not trained to the end with this code.

16 images of 512 x 512 pixels in an iteration, 2 on each of 8 GPUs; `--amp` trains in mixed precision.
"""

_base_ = './_base_/upernet_160k_ade20k-512x512.py'

from poa_mm.deploy.downstream import segmentor, swin

model = segmentor(swin('96x6', checkpoint='subnets/poa_96x6.safetensors', drop_path_rate=0.1))
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=1.0))  # as is customary for Swin
