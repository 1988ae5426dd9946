"""POA, ViT-S/16 supernet of 35 subnets, ImageNet-1K, one GPU with gradient accumulation.

    python tools/train.py configs/poa/vits_in1k_1gpu.py

Not a recipe of the paper, and no score is known. What differs from `vitl_in1k.py`, beside the smaller
supernet and 100 epochs:

- An update averages the gradients of 16 batches of 64 images. Its loss is not that of one batch of
  1,024: Sinkhorn-Knopp balances and KoLeo spreads the 64 images of a batch only.
- With 128 class tokens in a batch, tens of thousands of prototypes could not be balanced; the four
  heads have 1,024 to 8,192.
- Each of the 16 batches deals a subnet of its own, as 16 GPUs would.
- Schedules count iterations (batches), not updates.
"""

_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/in1k_multicrop.py']

from poa_mm.recipes import schedule

recipe = dict(
    batch_size=64,
    accumulate=16,  # batches of one update
    images=1281167,
    epochs=100,
    warmup_epochs=10,
    ramp_epochs=10,
    freeze_epochs=1,
    amp='float16',
    paramwise_cfg=dict(layer_decay_rate=0.9, patch_embed_lr_mult=0.2, flat_decay_mult=0.0),
)
optim_wrapper, param_scheduler, custom_hooks, train_cfg = schedule(**recipe)
train_dataloader = dict(batch_size=recipe['batch_size'])

# --- model -----------------------------------------------------------------------------------
model = dict(
    type='POA',
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(
        type='ElasticVisionTransformer',
        arch='deit-small',
        widths=list(range(128, 385, 64)),
        depths=list(range(6, 13)),
        img_size=224,
        patch_size=16,
        drop_path_rate=0.1,
        layer_scale_init_value=1e-5,
    ),
    head=dict(type='MultiPrototypeHead', num_prototypes=[1024, 2048, 4096, 8192]),
)
