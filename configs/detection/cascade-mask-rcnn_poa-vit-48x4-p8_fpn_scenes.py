"""Cascade Mask R-CNN on scenes of Fashion-MNIST items, subnet 48x4 of `configs/poa/vitt_fmnist_rgb.py`, on a CPU.

python tools/downstream_experiment.py detection    # this and its variants; see docs/downstream.md
"""

_base_ = './_base_/cascade-mask-rcnn_fpn_scenes.py'

from poa_mm.deploy.downstream import detector, vit

model = detector(
    vit('48x4', checkpoint='subnets/poa_48x4.safetensors', img_size=32, patch_size=8, head_dim=16, mlp_ratio=2),
    channels=_base_.channels,
    norm_cfg=_base_.norm_cfg,
)
