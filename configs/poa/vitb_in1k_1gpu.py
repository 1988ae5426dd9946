"""POA, ViT-B/16 supernet of 49 subnets, ImageNet-1K, one GPU: the paper's batch of 1,600 in pieces of 25 images.

    python tools/train.py configs/poa/vitb_in1k_1gpu.py

Not a recipe of the paper: a smaller supernet than its ViT-L. It is ours, has not been run, and no score is known. The
recipe is that of `vitl_in1k.py`: 443 million images in batches of 1,600, the same learning rates and schedules. What
differs beside the network: a subnet is dealt for 1,600 images instead of 50, and KoLeo looks for neighbours among all.

The images of a batch take 4.2 GB on the GPU, and 0.9 GB in each of the loader's workers.
"""

_base_ = 'vitl_in1k.py'

from poa_mm.recipes import schedule

recipe = dict(**_base_.recipe)
recipe.update(gpus=1, batch_size=1600)
optim_wrapper, param_scheduler, custom_hooks, train_cfg = schedule(**recipe)
train_dataloader = dict(batch_size=recipe['batch_size'], prefetch_factor=1)
model = dict(
    backbone=dict(arch='base', widths=list(range(384, 769, 64)), depths=list(range(6, 13))),
    micro_batches=64,
)
