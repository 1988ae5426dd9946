"""UperNet on scenes of Fashion-MNIST items, subnet 96x6 of `configs/poa/vitt_fmnist_rgb.py`, on a CPU.

python tools/downstream_experiment.py segmentation    # this and its variants; see docs/downstream.md
"""

_base_ = './_base_/upernet_scenes.py'

from poa_mm.deploy.downstream import segmentor, vit

model = segmentor(
    vit('96x6', checkpoint='subnets/poa_96x6.safetensors', img_size=32, patch_size=8, head_dim=16, mlp_ratio=2)
)
