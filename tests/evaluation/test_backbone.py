import pytest
import torch
from mmengine.registry import DefaultScope, init_default_scope
from torch.testing import assert_close

from poa_mm.checkpoint import CheckpointError, describe_supernet
from poa_mm.deploy.downstream import vit
from poa_mm.elastic import Subnet
from poa_mm.evaluation import load_backbone

ELASTIC = dict(
    type='ElasticVisionTransformer',
    arch=dict(embed_dims=64, num_layers=4, num_heads=4, feedforward_channels=256),
    widths=[32, 48, 64],
    depths=[2, 3, 4],
    img_size=64,
    layer_scale_init_value=0.5,
)


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmpretrain')
    yield
    DefaultScope._instance_dict.clear()


def stock(subnet, checkpoint=None, **options):
    return vit(subnet, checkpoint, img_size=64, head_dim=16, layer_scale_init_value=0.5, **options)


@pytest.fixture
def files(elastic_vit, tmp_path):
    """A supernet's checkpoint and the weights of its subnet 48x3."""
    supernet = elastic_vit()
    state = {f'teacher.backbone.{key}': value for key, value in supernet.state_dict().items()}
    torch.save({'state_dict': state, 'poa': describe_supernet(dict(backbone=ELASTIC))}, tmp_path / 'poa.pth')
    torch.save({'state_dict': supernet.extract(Subnet(48, 3))[1]}, tmp_path / 'poa_48x3.pth')
    return tmp_path


@pytest.mark.parametrize('options', [{}, {'out_type': 'featmap', 'drop_path_rate': 0.5}])
def test_extracted_network_has_the_subnets_features(files, options):
    supernet = load_backbone(ELASTIC, files / 'poa.pth')
    network = load_backbone(stock('48x3', files / 'poa_48x3.pth', **options))  # the file that init_cfg names
    assert list(map(str, network.space)) == ['48x3']
    assert not network.training and not supernet.training
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for found, expected in zip(network.extract_features(images), supernet.extract_features(images, Subnet(48, 3))):
            assert_close(found, expected)


@pytest.mark.parametrize(
    ('family', 'subnet'),
    [('vit', '48x3'), ('swin', '24x3'), ('resnet', '8x3-4-6-3'), ('resnet', '12x3-2-1-3')],
)
def test_extracted_networks_of_every_family(family, subnet, supernets, supernet_file, tmp_path):
    supernet = load_backbone(supernets[family], supernet_file(family))
    config, state = supernet.extract(supernet.space.parse(subnet))
    torch.save({'state_dict': state}, tmp_path / 'poa.pth')
    network = load_backbone(config, tmp_path / 'poa.pth')
    assert list(map(str, network.space)) == [subnet]
    assert not network.training
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = supernet.extract_features(images, supernet.space.parse(subnet))
        for found, features in zip(network.extract_features(images), expected):
            assert_close(found, features)


@pytest.mark.parametrize(
    ('config', 'file', 'error', 'message'),
    [
        (stock('48x4'), 'poa_48x3.pth', CheckpointError, r'layers\.3'),
        (stock('32x3'), 'poa_48x3.pth', CheckpointError, 'cls_token'),
        (stock('48x3'), 'poa.pth', CheckpointError, r'teacher\.backbone'),
        (ELASTIC, 'poa_48x3.pth', CheckpointError, 'expected weights teacher.backbone'),
        (stock('48x3'), 'gone.pth', CheckpointError, 'gone.pth'),
        (stock('48x3'), None, ValueError, 'no checkpoint'),
        (dict(ELASTIC, init_cfg=dict(type='TruncNormal', layer='Linear')), None, ValueError, 'no checkpoint'),
        (dict(type='ResNet', depth=50), 'poa_48x3.pth', CheckpointError, 'unexpected cls_token'),
        (dict(type='VGG', depth=11), 'poa_48x3.pth', ValueError, "'VGG' is neither elastic nor one of Vision"),
        (dict(type='NoSuchNetwork'), 'poa_48x3.pth', ValueError, "'NoSuchNetwork' is neither"),
        (dict(), 'poa_48x3.pth', ValueError, 'None is neither'),
    ],
)
def test_errors(files, config, file, error, message):
    with pytest.raises(error, match=message):
        load_backbone(config, file and files / file)
