# What all pre-training runs share: loop, logging, checkpoints, environment.
custom_imports = dict(imports=['poa_mm'], allow_failed_imports=False)
default_scope = 'mmpretrain'

train_cfg = dict(type='ResumableTrainLoop')

default_hooks = dict(
    runtime_info=dict(type='RuntimeInfoHook'),
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='POACheckpointHook', by_epoch=False, interval=2000, max_keep_ckpts=3),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    nonfinite=dict(type='NonFiniteHook', max_in_a_row=10),
    bad_data=dict(type='BadDataHook', max_share=0.01, min_images=1000),
    preemption=dict(type='PreemptionHook'),
    health=dict(type='RunHealthHook', interval=50),
)

env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)

vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
visualizer = dict(type='UniversalVisualizer', vis_backends=vis_backends)
log_processor = dict(by_epoch=False, window_size=50)
log_level = 'INFO'
load_from = None
resume = False
randomness = dict(seed=0, diff_rank_seed=True)
