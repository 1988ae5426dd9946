"""The small supernet of these tests."""

BACKBONE = dict(
    type='ElasticVisionTransformer',
    arch=dict(embed_dims=32, num_layers=3, num_heads=4, feedforward_channels=64),
    widths=[16, 32],
    depths=[2, 3],
    img_size=8,
    patch_size=4,
    layer_scale_init_value=0.5,
    norm_cfg=dict(type='LN', eps=1e-5),
    init_cfg=dict(type='TruncNormal', layer='Linear', std=0.1),
)
MODEL = dict(
    type='POA',
    backbone=BACKBONE,
    head=dict(type='MultiPrototypeHead', num_prototypes=(4, 8), hidden_channels=8, bottleneck_channels=4),
    data_preprocessor=dict(mean=[1.0] * 3, std=[2.0] * 3),
)
