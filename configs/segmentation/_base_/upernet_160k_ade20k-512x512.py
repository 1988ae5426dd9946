# UperNet as BEiT, MAE and iBOT fine-tune it on ADE20K; the backbone is the leaves'.
# Not 'mmseg::_base_/...': mmengine looks for a distribution called mmsegmentation, which onedl's is not.
_base_ = [
    f'{__import__("mmseg").__path__[0]}/.mim/configs/_base_/{name}.py'
    for name in ('models/upernet_beit', 'datasets/ade20k', 'schedules/schedule_160k', 'default_runtime')
]
custom_imports = dict(imports=['poa_mm'], allow_failed_imports=False)

# --- model -----------------------------------------------------------------------------------
crop_size = (512, 512)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(_delete_=True),  # the BEiT of mmseg's base goes
    neck=dict(_delete_=True),
    decode_head=dict(channels=512),
    test_cfg=dict(mode='slide', crop_size=crop_size, stride=(341, 341)),
)

# --- data ------------------------------------------------------------------------------------
train_dataloader = dict(batch_size=2)  # on each of 8 GPUs

# --- optimisation ----------------------------------------------------------------------------
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        layer_decay_rate=0.65,
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        flat_decay_mult=0.0,  # LayerScale
        custom_keys={
            name: dict(decay_mult=0.0) for name in ('.cls_token', '.pos_embed', '.relative_position_bias_table')
        },
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=1500, end=160000),
]
# Swin's norms of the first three stages' maps, which pre-training does not look at.
custom_hooks = [dict(type='StrictPretrainedHook', new=['norm0', 'norm1', 'norm2'])]
auto_scale_lr = dict(enable=False, base_batch_size=16)
