"""The stock vision transformer that a subnet is."""

from __future__ import annotations

from typing import Any

from poa_mm.elastic import Subnet, kept_blocks

ElasticVisionTransformer = Any  # which imports this module


def vit_config(network: ElasticVisionTransformer, subnet: Subnet) -> dict[str, Any]:
    """Config of the ``mmpretrain.VisionTransformer`` that a subnet of ``network`` is."""
    heads = subnet.width // network.head_dim
    return dict(
        type='VisionTransformer',
        arch=dict(
            embed_dims=subnet.width,
            num_layers=subnet.depth,
            num_heads=heads,
            feedforward_channels=network.hidden_dims * subnet.width // network.embed_dims,
        ),
        img_size=network.img_size,
        patch_size=network.patch_size_of(subnet),
        in_channels=network.in_channels,
        qkv_bias=network.qkv_bias,
        norm_cfg=dict(type='LN', eps=network.norm_eps),
        interpolate_mode=network.interpolate_mode,
        layer_scale_init_value=network.layer_scale_init_value,
        **_other_options(network, subnet),
    )


def _other_options(network: ElasticVisionTransformer, subnet: Subnet) -> dict[str, Any]:
    """What the config says only where it is not the stock network's default."""
    options: dict[str, Any] = {}
    if network.out_type == 'avg_featmap':
        options['out_type'] = 'avg_featmap'
    elif not network.with_cls_token:
        options['out_type'] = 'featmap'  # whose mean is the class feature
    if not network.with_cls_token:
        options['with_cls_token'] = False
    if not network.final_norm:
        options['final_norm'] = False
    if network.with_pre_norm:
        options['pre_norm'] = True
    if network.patch_bias == network.with_pre_norm:  # the stock network has the one or the other
        options['patch_cfg'] = dict(bias=network.patch_bias)
    if network.drop_rate:
        options['drop_rate'] = network.drop_rate
    if network.layer_cfgs:
        options['layer_cfgs'] = network.layer_cfgs
    if frozen := sum(index < network.frozen_stages for index in kept_blocks(subnet.depth, network.num_layers)):
        options['frozen_stages'] = frozen
    return options
