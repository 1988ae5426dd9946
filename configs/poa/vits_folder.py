"""POA on your own folder of unlabelled images, ViT-S/16 supernet, one GPU.

    python tools/train.py configs/poa/vits_folder.py --cfg-options \
        train_dataloader.dataset.data_prefix=/path/to/images

Every image below the folder is used, and the log says what is left out. Copy this file and put in at `images`
about how many you have: it sets the length of an epoch, and with it of the run and its schedules (`--cfg-options`
cannot: they are computed here). Evaluation needs labels: give `knn.bank.dataset` and `knn.query.dataset` two
labelled folders, or extract a subnet and fine-tune it.
"""

_base_ = 'vits_in1k_1gpu.py'

images = 100_000
epochs = 300
batch_size = 64
accumulate = 16
epoch_iters = max(images // (batch_size * accumulate), 1) * accumulate
max_iters = epochs * epoch_iters
warmup_iters = 10 * epoch_iters

train_dataloader = dict(batch_size=batch_size, dataset=dict(data_prefix='data/images'))

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=warmup_iters),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.005, by_epoch=False, begin=warmup_iters, end=max_iters),
    dict(
        type='CosineAnnealingParamScheduler',
        param_name='weight_decay',
        eta_min_ratio=10,
        by_epoch=False,
        begin=0,
        end=max_iters,
    ),
]
custom_hooks = [
    dict(type='TeacherEMAHook', momentum=(0.992, 0.9999)),
    dict(
        type='POAScheduleHook',
        teacher_temp=(0.04, 0.07),
        teacher_temp_iters=30 * epoch_iters,
        patch_loss_start=30 * epoch_iters,
        freeze_prototypes_iters=epoch_iters,
    ),
    dict(type='SupernetCheckpointHook'),
]
train_cfg = dict(max_iters=max_iters)

class_pipeline = _base_.knn_pipeline
knn = dict(
    bank=dict(
        dataset=dict(_delete_=True, type='ImageFolder', data_prefix='data/labelled/train', pipeline=class_pipeline)
    ),
    query=dict(
        dataset=dict(_delete_=True, type='ImageFolder', data_prefix='data/labelled/val', pipeline=class_pipeline)
    ),
)
