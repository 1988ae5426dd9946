from fractions import Fraction

import pytest
import torch
from mmpretrain.models.backbones import VisionTransformer
from mmpretrain.models.utils.attention import scaled_dot_product_attention_pyimpl
from torch.utils.flop_counter import FlopCounterMode

from poa_mm.elastic import resnet_cost, transformer_cost
from poa_mm.models import BottleneckResNet


def stock(**options):
    """Stock network without storage, whose attention is made of matrix products that torch counts."""
    with torch.device('meta'):
        network = VisionTransformer(**options)
    for layer in network.layers:
        layer.attn.scaled_dot_product_attention = scaled_dot_product_attention_pyimpl
    return network


def counted_flops(network, height, width, channels=3):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, channels, height, width, device='meta'))
    return counter.get_total_flops()


@pytest.mark.parametrize(
    'width, depth, params',
    [(192, 12, 5_524_416), (384, 12, 21_665_664), (768, 12, 85_798_656), (1024, 24, 303_301_632)],
)
def test_published_sizes(width, depth, params):
    """ViT-Ti, -S, -B and -L/16 at 224 pixels, as timm and the papers count them without the classifier."""
    cost = transformer_cost(width, depth, tokens=196, patch_inputs=768, layer_scale=False)
    assert cost.params == params


OPTIONS = {
    'default': {},
    'without qkv bias': dict(qkv_bias=False),
    'without layer scale': dict(layer_scale=False),
    'without final norm': dict(norms=0),
    'narrow mlp': dict(mlp_ratio=Fraction(3, 2)),
}


@pytest.mark.parametrize('options', OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize('width, depth, image', [(32, 2, (64, 64)), (48, 3, (48, 96)), (384, 12, (224, 224))])
def test_cost_is_that_of_the_stock_network(width, depth, image, options):
    network = stock(
        arch=dict(
            embed_dims=width,
            num_layers=depth,
            num_heads=width // 16,
            feedforward_channels=int(width * options.get('mlp_ratio', 4)),
        ),
        img_size=image,
        qkv_bias=options.get('qkv_bias', True),
        layer_scale_init_value=1e-5 if options.get('layer_scale', True) else 0.0,
        final_norm=options.get('norms', 1) > 0,
    )
    tokens = (image[0] // 16) * (image[1] // 16)
    cost = transformer_cost(width, depth, tokens=tokens, patch_inputs=3 * 16 * 16, **options)
    assert cost.params == sum(param.numel() for param in network.parameters())
    assert cost.flops == counted_flops(network, *image)


def test_extra_tokens():
    """Every register would cost its own vector and position, and a longer sequence in the blocks only."""
    none, one, five = (transformer_cost(32, 2, tokens=16, patch_inputs=768, extra_tokens=n) for n in (0, 1, 5))
    assert one.params - none.params == 2 * 32
    assert five.params - none.params == 5 * 2 * 32
    matrices, attention = 2 * (4 + 8) * 32**2, 2 * 2 * 32
    assert five.flops - none.flops == 2 * (5 * matrices + (21**2 - 16**2) * attention)


@pytest.mark.parametrize(
    'depth, params', [(50, 23_508_032), (101, 42_500_160), (152, 58_143_808)], ids=lambda value: str(value)
)
def test_published_sizes_of_resnet(depth, params):
    """As torchvision's without the classifier, and 4.1, 7.8 and 11.5 billion multiply-adds."""
    blocks = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}[depth]
    cost = resnet_cost(64, blocks, image_size=(224, 224))
    assert cost.params == params
    assert cost.flops / 2e9 == pytest.approx({50: 4.1, 101: 7.8, 152: 11.5}[depth], abs=0.06)


@pytest.mark.parametrize(
    'mid_channels, stage_blocks, strides', [(8, (1, 2, 3, 1), (1, 2, 2, 2)), (12, (2, 1, 1, 1), (1, 2, 1, 1))]
)
@pytest.mark.parametrize('image', [(64, 64), (50, 83)], ids=str)
def test_cost_is_that_of_the_plain_resnet(mid_channels, stage_blocks, strides, image):
    network = BottleneckResNet(
        stage_blocks,
        mid_channels,
        in_channels=1,
        stem_channels=8,
        base_channels=8,
        strides=strides,
        norm_cfg=dict(type='GN', num_groups=4),
    )
    cost = resnet_cost(
        mid_channels, stage_blocks, image_size=image, out_channels=32, stem_channels=8, in_channels=1, strides=strides
    )
    assert cost.params == sum(param.numel() for param in network.parameters())
    assert cost.flops == counted_flops(network.to('meta'), *image, channels=1)


def test_elastic_network_counts_what_it_extracts(elastic_vit):
    """Parameters of all subnets and a mlp ratio that no float holds: 30 / 22 * 11 is 15, not 14.99."""
    networks = [
        elastic_vit(),
        elastic_vit(qkv_bias=False, layer_scale_init_value=0),
        elastic_vit(
            arch=dict(embed_dims=22, num_layers=2, num_heads=2, feedforward_channels=30), widths=(11, 22), depths=(1, 2)
        ),
    ]
    for network in networks:
        for subnet in network.space:
            _, state = network.extract(subnet)
            assert network.cost(subnet).params == sum(value.numel() for value in state.values())


def test_elastic_network_at_other_sizes(elastic_vit):
    network = elastic_vit()
    subnet = network.space.smallest
    config, _ = network.extract(subnet)
    del config['type']
    for size, image in ((96, (96, 96)), ((60, 96), (64, 96))):  # partial patches count as whole ones
        plain = stock(**config | dict(img_size=image))
        cost = network.cost(subnet, image_size=size)
        assert cost.params == sum(param.numel() for param in plain.parameters())
        assert cost.flops == counted_flops(plain, *image)


def test_cost_outside_the_space_is_refused(elastic_vit):
    from poa_mm.elastic import Subnet

    with pytest.raises(ValueError, match='40x2 is not in the space'):
        elastic_vit().cost(Subnet(40, 2))
