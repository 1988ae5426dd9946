"""Small networks, the configs of supernets that are them at full size, and what is made of their weights."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

NORMALISATION = dict(mean=[1.5, 2.5, 3.5], std=[4.0, 5.0, 6.0])
HEAD = dict(type='MultiPrototypeHead', num_prototypes=[64, 128], hidden_channels=96, bottleneck_channels=32)
BACKBONES = dict(
    vit=dict(
        type='ElasticVisionTransformer',
        arch=dict(embed_dims=64, num_layers=3, num_heads=4, feedforward_channels=256),
        widths=[32, 48, 64],
        depths=[2, 3],
        img_size=32,
        patch_size=8,
    ),
    swin=dict(
        type='ElasticSwinTransformer',
        arch=dict(embed_dims=32, depths=[1, 2, 3, 2], num_heads=[2, 4, 8, 16]),
        widths=[16, 32],
        depths=[2, 3],
        img_size=64,
        window_size=2,
        unshifted_stages=[3],
    ),
    resnet=dict(
        type='ElasticResNet',
        stage_blocks=(1, 1, 2, 1),
        mid_channels=32,
        widths=[16, 32],
        depths=[1, 1, [1, 2], 1],
        num_groups=16,
        img_size=32,
    ),
)
# What is put into order, with options that bring parameters of their own.
ARCH = dict(embed_dims=64, num_layers=3, num_heads=4, feedforward_channels=128)
VIT = dict(type='ElasticVisionTransformer', arch=ARCH, widths=[32, 64], depths=[2, 3], img_size=32, patch_size=8)
SWIN_ARCH = dict(embed_dims=32, depths=[1, 2, 3, 1], num_heads=[4, 8, 16, 32])
SWIN = dict(type='ElasticSwinTransformer', arch=SWIN_ARCH, widths=[16, 32], depths=[2, 3], img_size=64, window_size=4)
RESNET = dict(
    type='ElasticResNet',
    stage_blocks=[2, 1, 2, 1],
    mid_channels=16,
    depths=[2, 1, [1, 2], 1],
    stem_channels=8,
    base_channels=8,
    num_groups=4,
    img_size=64,
)
NETWORKS = {
    'vit': VIT,
    'vit of other options': dict(
        VIT, pre_norm=True, final_norm=False, out_type='avg_featmap', layer_scale_init_value=0, qkv_bias=False
    ),
    'vit of several patch sizes': dict(VIT, patch_sizes=[4, 8]),
    'swin': SWIN,
    'swin of other options': dict(SWIN, use_abs_pos_embed=True, out_indices=(0, 1, 2, 3), stem_norm='full'),
    'resnet': RESNET,
    'resnet of other options': dict(RESNET, deep_stem=True, avg_down=True),
}


@pytest.fixture(scope='session')
def network_of(randomise):
    """Maker of one of ``NETWORKS`` in float64, in evaluation mode."""

    def make(name):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            backbone = randomise(MODELS.build(dict(NETWORKS[name])).double())
        backbone.eval()
        return backbone

    return make


@pytest.fixture(scope='session')
def config_of():
    """Maker of a pre-training config of a family."""

    def make(family, **options):
        backbone = BACKBONES[family] | options
        return Config(dict(model=dict(type='POA', data_preprocessor=NORMALISATION, backbone=backbone, head=HEAD)))

    return make


@pytest.fixture
def save(tmp_path):
    """Saves weights, or what holds them, as a file."""

    def write(content, name='weights.pth'):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write
