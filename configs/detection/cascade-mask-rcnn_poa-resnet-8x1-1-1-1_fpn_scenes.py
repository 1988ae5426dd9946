"""Cascade Mask R-CNN on scenes of Fashion-MNIST items on a CPU: 8x1-1-1-1 of `configs/poa/resnet_fmnist_rgb.py`.

python tools/downstream_experiment.py detection    # this and its variants; see docs/downstream.md
"""

_base_ = './_base_/cascade-mask-rcnn_fpn_scenes.py'

from poa_mm.deploy.downstream import detector, resnet

sizes = dict(stem_channels=16, base_channels=16, num_groups=4)  # of the supernet
model = detector(
    resnet('8x1-1-1-1', checkpoint='subnets/poa_8x1-1-1-1.safetensors', **sizes),
    channels=_base_.channels,
    norm_cfg=_base_.norm_cfg,
)
