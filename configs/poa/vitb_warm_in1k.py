"""A short POA that starts from a ViT-B/16 which exists: supernet of 49 subnets, ImageNet-1K, one node of 8 GPUs.

    python tools/warm_start.py configs/poa/vitb_warm_in1k.py WEIGHTS -o data/vitb_start.pth --order taylor --images FOLDER
    tools/dist_train.sh configs/poa/vitb_warm_in1k.py 8

Not a recipe of the paper, and no score is known: `docs/warm_start.md` says what was measured, in miniature. What differs
from a run from scratch, such as `vitl_in1k.py`:

- `load_from` gives student and teacher the weights; the heads are new. For the first epoch they learn alone: the
  backbone keeps every weight, and so does its average, which is taken from the start.
- Learning rates are a quarter of those, and less and less towards the first layer, with a tenth as many epochs.
- LayerScale is what the weights have, and 1 where they have none, not 1e-5.

The teacher follows the student. `--cfg-options model.frozen_teacher=source` keeps the network that the run starts from
as the teacher, and that page has a config whose teacher is another, larger network.
"""

_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/in1k_multicrop.py']

from poa_mm.recipes import schedule

recipe = dict(
    gpus=8,
    batch_size=128,  # images a GPU
    images=1281167,
    epochs=30,
    warmup_epochs=2,
    ramp_epochs=3,  # of the teacher's temperature; then the patch loss starts
    heads_epochs=1,  # in which the backbone does not change
    lr=0.001,
    min_lr=1e-6,
    weight_decay=(0.04, 0.2),
    momentum=(0.996, 0.9999),
    amp='float16',
    paramwise_cfg=dict(layer_decay_rate=0.8, patch_embed_lr_mult=0.2, flat_decay_mult=0.0),
)
optim_wrapper, param_scheduler, custom_hooks, train_cfg = schedule(**recipe)
train_dataloader = dict(batch_size=recipe['batch_size'])
load_from = 'data/vitb_start.pth'

# --- model -----------------------------------------------------------------------------------
model = dict(
    type='POA',
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(
        type='ElasticVisionTransformer',
        arch='base',
        widths=list(range(384, 769, 64)),
        depths=list(range(6, 13)),
        img_size=224,
        patch_size=16,
        drop_path_rate=0.1,
        layer_scale_init_value=1.0,
    ),
    head=dict(type='MultiPrototypeHead', num_prototypes=[8192, 16384, 32768, 65536]),
)
