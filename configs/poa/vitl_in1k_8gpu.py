"""POA, ViT-L/16 supernet of 143 subnets, ImageNet-1K, 8 GPUs: the paper's batch of 1,600 in pieces of 10 images.

    tools/dist_train.sh configs/poa/vitl_in1k_8gpu.py 8

The recipe is that of `vitl_in1k.py`: losses, learning rates and schedules are those of 32 GPUs with 50 images each.
Each of 8 GPUs has 200 images, of which 10 go through the networks at a time (docs/pretraining.md). What differs: a
subnet is dealt for 200 images instead of 50, and KoLeo looks for neighbours among 200.
"""

_base_ = 'vitl_in1k.py'

from poa_mm.recipes import schedule

recipe = dict(**_base_.recipe)
recipe.update(gpus=8, batch_size=200)
optim_wrapper, param_scheduler, custom_hooks, train_cfg = schedule(**recipe)
train_dataloader = dict(batch_size=recipe['batch_size'])
model = dict(micro_batches=20)
