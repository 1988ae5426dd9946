"""A short POA on your own images that starts from a ViT-S/16 which exists: 35 subnets, one GPU (docs/warm_start.md).

    python tools/warm_start.py configs/poa/vits_warm_folder.py WEIGHTS -o START.pth --order taylor --images FOLDER
    python tools/train.py configs/poa/vits_warm_folder.py --data FOLDER --cfg-options load_from=START.pth

Ours, not the paper's; not run at full size. `vits_folder.py` with the settings of a short run: 60 passes over the
images instead of 300, lower learning rates, the heads first.
"""

_base_ = 'vits_folder.py'

from poa_mm.recipes import schedule

recipe = dict(**_base_.recipe)
recipe.update(epochs=60, warmup_epochs=3, ramp_epochs=6, freeze_epochs=0, heads_epochs=2)
recipe.update(lr=0.001, min_lr=1e-6, weight_decay=(0.04, 0.2), momentum=(0.996, 0.9999))
recipe.update(paramwise_cfg=dict(layer_decay_rate=0.8, patch_embed_lr_mult=0.2, flat_decay_mult=0.0))
optim_wrapper, param_scheduler, custom_hooks, train_cfg = schedule(**recipe)

load_from = 'data/vits_start.pth'
model = dict(backbone=dict(layer_scale_init_value=1.0))  # and no collapse of what is trained already
