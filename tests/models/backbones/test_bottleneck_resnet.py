import pytest
import torch
from mmengine.registry import MODELS
from mmpretrain.models.backbones import ResNet
from torch.testing import assert_close

from poa_mm.models import BottleneckResNet

SMALL = dict(stem_channels=8, base_channels=4, norm_cfg=dict(type='GN', num_groups=2))


def test_with_the_sizes_of_a_resnet50_it_is_one():
    stock = ResNet(50, **SMALL)
    network = BottleneckResNet((3, 4, 6, 3), mid_channels=4, **SMALL)
    network.load_state_dict(stock.state_dict(), strict=True)
    image = torch.randn(1, 3, 32, 32)
    assert_close(network(image), stock(image), rtol=0, atol=0)


@pytest.mark.parametrize('mid_channels', [2, 6, 10])
def test_mid_channels_leave_the_outputs_alone(mid_channels):
    network = BottleneckResNet((1, 2, 3, 1), mid_channels, out_indices=(0, 1, 2, 3), **SMALL)
    for stage, mid in enumerate((1, 2, 4, 8)):
        for block in getattr(network, f'layer{stage + 1}'):
            assert block.conv2.weight.shape == (mid * mid_channels, mid * mid_channels, 3, 3)
            assert block.norm1.num_channels == block.norm2.num_channels == mid * mid_channels
    maps = network(torch.randn(1, 3, 64, 64))
    assert [out.shape[1:] for out in maps] == [(16, 16, 16), (32, 8, 8), (64, 4, 4), (128, 2, 2)]
    assert [len(getattr(network, f'layer{stage}')) for stage in range(1, 5)] == [1, 2, 3, 1]


def test_residual_branches_start_at_zero():
    network = MODELS.build(dict(type='BottleneckResNet', stage_blocks=[1, 1, 1, 1], mid_channels=6, **SMALL))
    network.init_weights()
    assert not network.layer3[0].norm3.weight.any() and (network.layer3[0].norm2.weight == 1).all()


@pytest.mark.parametrize(
    'name, depth',
    [
        ('conv1.weight', 0),
        ('gn1.bias', 0),
        ('layer1.0.conv1.weight', 1),
        ('layer1.0.downsample.0.weight', 1),
        ('layer2.0.gn3.weight', 2),
        ('layer2.1.gn3.weight', 3),
        ('layer3.2.conv3.weight', 6),
        ('layer4.0.conv3.weight', 7),
    ],
)
def test_every_block_is_a_layer(name, depth):
    network = BottleneckResNet((1, 2, 3, 1), **SMALL)
    assert network.get_layer_depth(name) == (depth, 8)
    assert network.get_layer_depth(f'backbone.{name}', 'backbone.') == (depth, 8)


def test_heads_share_the_depth_of_the_last_block():
    network = BottleneckResNet((1, 2, 3, 1), **SMALL)
    assert network.get_layer_depth('head.fc.weight', 'backbone.') == (7, 8)
