import pytest
import torch

from poa_mm.deploy.export.network import ExportError, ExportNetwork

CASES = [('vit', '48x3'), ('swin', '24x4'), ('resnet', '96x1-2-1-1')]


@pytest.mark.parametrize(('family', 'subnet'), CASES)
def test_swapped_channels_take_rgb(family, subnet, export_network):
    network = export_network(family, subnet, 'bgr')
    assert network.swapped
    assert network.mean == [120.5 / 255, 110.5 / 255, 100.5 / 255]
    assert network.std == [70 / 255, 60 / 255, 50 / 255]
    images = torch.randn(2, 3, 64, 64)
    for found, expected in zip(network.outputs(images), network.outputs(images, original=True)):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (network.outputs(images.flip(1)).features - network.outputs(images).features).abs().max() > 0.01


@pytest.mark.parametrize(('family', 'subnet'), CASES)
def test_what_is_in_rgb_stays_as_it_is(family, subnet, export_network):
    network = export_network(family, subnet)
    assert not network.swapped
    assert network.mean == [100.5 / 255, 110.5 / 255, 120.5 / 255]
    assert all(value is network.stock.state[name] for name, value in network.state.items())


def test_without_normalisation(export_network):
    network = export_network('vit', '32x2', {}, in_channels=5)
    assert not network.swapped
    assert network.mean == [0] * 5
    assert network.std == [1 / 255] * 5


def test_one_mean_for_all_channels(export_network):
    assert export_network('vit', '32x2', dict(mean=[51.0], std=[102.0])).mean == [0.2] * 3
    with pytest.raises(ExportError, match='mean of the images has 3 values, the network takes 4 channels'):
        export_network('vit', '32x2', 'rgb', in_channels=4)


def test_an_unknown_option_is_refused(export_network):
    stock = export_network('vit', '32x2').stock
    with pytest.raises(ExportError, match='do not know the option pre_norm of VisionTransformer'):
        ExportNetwork(stock._replace(config={**stock.config, 'pre_norm': True}))


@pytest.mark.parametrize(
    ('family', 'subnet', 'stride'), [('vit', '48x3', 16), ('swin', '24x4', 32), ('resnet', '96x1-2-1-1', 32)]
)
def test_stride_is_that_of_the_map(family, subnet, stride, export_network):
    network = export_network(family, subnet)
    assert network.stride == (stride, stride)
    outputs = network.outputs(torch.randn(1, 3, 64, 128))
    assert outputs.feature_map.shape[-2:] == (64 // stride, 128 // stride)
    assert outputs.features.shape == outputs.feature_map.shape[:2]


@pytest.mark.parametrize('channels', [1, 3, 5])
def test_bands_keep_their_order(channels, export_network):
    bands = dict(type='MultiBandDataPreprocessor', mean=[10.0] * channels, std=[20.0] * channels, value_range=(0, 4095))
    network = export_network('vit', '32x2', bands, in_channels=channels)
    assert network.has_bands
    assert not network.swapped
    assert network.description()['input']['value_range'] == (0, 4095)
    assert network.description()['input']['order'] == 'as in pre-training'
