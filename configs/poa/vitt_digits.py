"""POA on scikit-learn's handwritten digits: the demo, 8 x 8 pixels, on a CPU in minutes.

`make demo` pre-trains on the 1,433 training images without their labels and scores all 16 subnets by k-NN on the
364 test images. It takes some minutes on one CPU core.

README gives the range of the scores over several seeds, which `benchmarks/demo_seeds.py` measures.

For scale: the 64 pixels themselves, without any network, score 0.981. The demo shows that all sizes learn together, not
that digits are hard.

Settings were chosen on `fit` and `val`, the two parts of the training images, not on the test images. What differs
from the paper's recipe, and why:

- Four patches an image and mild crops, two of them local; no flip and no colour: they would change the digit or do
  nothing. A local crop is a smaller part of the digit, resized to the size of a global one.
- Two heads with few prototypes: Sinkhorn-Knopp shares them out over the 128 global crops of a batch.
- Larger initial weights, for narrow layers; one learning rate for all layers, for there are few of them.
- 1,000 steps instead of 276,800: a teacher and an AdamW with a shorter memory, and a ramp of 300 steps for all that
  starts late. KoLeo gets the features going; then the class and patch losses take over.
"""

_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/digits.py']

from poa_mm.recipes import schedule

recipe = dict(
    **dict(batch_size=64, max_iters=1000, warmup_iters=100),
    ramp_iters=300,  # of the teacher's temperature; then the patch loss starts
    freeze_iters=300,  # free prototypes give in to one output for every image while all features are alike
    **dict(lr=0.003, lr_batch=64, min_lr=3e-5, warmup_start=0.01),
    # Before LayerScale opens, all features are alike and KoLeo's gradient is many times what follows; with 0.999,
    # AdamW would remember it, and so take small steps, for the whole run.
    betas=(0.9, 0.98),
    momentum=(0.98, 0.999),
)
optim_wrapper, param_scheduler, custom_hooks, train_cfg = schedule(**recipe)

# --- model -----------------------------------------------------------------------------------
model = dict(
    type='POA',
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(
        type='ElasticVisionTransformer',
        arch=dict(embed_dims=96, num_layers=6, num_heads=6, feedforward_channels=192),
        widths=[48, 64, 80, 96],
        depths=[3, 4, 5, 6],
        **dict(img_size=8, patch_size=4),
        # The default of 0.02 suits widths around 1,000; with 0.1, untrained features already tell digits apart.
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.04, bias=0.0),
    ),
    head=dict(
        type='MultiPrototypeHead',
        num_prototypes=[64, 128],
        hidden_channels=128,
        # Far below the number of prototypes: with 64 channels, the heads settled on one output for every image.
        bottleneck_channels=16,
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.1, bias=0.0),
    ),
)
train_dataloader = dict(batch_size=recipe['batch_size'])
