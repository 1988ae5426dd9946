"""POA on your own folder of unlabelled images, ViT-S/16 supernet, one GPU.

    python tools/train.py configs/poa/vits_folder.py --cfg-options \
        train_dataloader.dataset.data_prefix=/path/to/images

Every image below the folder is used, and the log says what is left out. Copy this file and put in at `images`
about how many you have: it sets the length of an epoch, and with it of the run and its schedules (`--cfg-options`
cannot: they are computed here). Evaluation needs labels: give `knn.bank.dataset` and `knn.query.dataset` two
labelled folders, or extract a subnet and fine-tune it.
"""

_base_ = 'vits_in1k_1gpu.py'

from poa_mm.recipes import schedule

images = 100_000
epochs = 300
batch_size = 64
accumulate = 16

recipe = dict(**_base_.recipe)
recipe.update(batch_size=batch_size, accumulate=accumulate, images=images, epochs=epochs, ramp_epochs=30)
optim_wrapper, param_scheduler, custom_hooks, train_cfg = schedule(**recipe)

train_dataloader = dict(batch_size=batch_size, dataset=dict(data_prefix='data/images'))

class_pipeline = _base_.knn_pipeline
knn = dict(
    bank=dict(
        dataset=dict(_delete_=True, type='ImageFolder', data_prefix='data/labelled/train', pipeline=class_pipeline)
    ),
    query=dict(
        dataset=dict(_delete_=True, type='ImageFolder', data_prefix='data/labelled/val', pipeline=class_pipeline)
    ),
)
