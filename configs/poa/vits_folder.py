"""POA on your own folder of unlabelled images, ViT-S/16 supernet, one GPU.

    python tools/train.py configs/poa/vits_folder.py --data FOLDER [--epochs N] [--batch-size B]

Every image below the folder is used, and the log says what is left out; shards and Arrow files are read, too
(docs/data.md). The images are counted when the run starts: an epoch is a pass over them. Evaluation needs labels: give
`knn.bank.dataset` and `knn.query.dataset` two labelled folders, or extract a subnet and fine-tune it.
"""

_base_ = 'vits_in1k_1gpu.py'

from poa_mm.recipes import schedule

batch_size = 64
accumulate = 16  # batches of one update

recipe = dict(**_base_.recipe)
recipe.update(batch_size=batch_size, accumulate=accumulate, images='data', epochs=300, ramp_epochs=30)  # all there are
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
