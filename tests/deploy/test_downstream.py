import pytest
import torch
from mmdet.registry import MODELS as MMDET
from mmengine.registry import MODELS, DefaultScope
from mmseg.registry import MODELS as MMSEG

from poa_mm.deploy.downstream import classifier, detector, linear_segmentor, segmentor, vit
from poa_mm.elastic import Subnet
from poa_mm.models import ElasticVisionTransformer

TINY = dict(head_dim=16, img_size=64)
TASKS = (detector, segmentor, linear_segmentor, classifier)


@pytest.fixture(scope='module')
def vitl():
    with torch.device('meta'):
        return ElasticVisionTransformer(arch='large')


@pytest.mark.parametrize('subnet', ['384x12', '448x13', '768x12', '1024x24'])
def test_vit_is_what_extraction_makes_of_the_shipped_supernet(vitl, subnet):
    extracted, _ = vitl.extract(Subnet.parse(subnet))
    expected = extracted | dict(type='mmpretrain.VisionTransformer', init_cfg=None)
    assert vit(subnet) == expected
    assert vit(Subnet.parse(subnet), checkpoint='a.pth') == expected | dict(
        init_cfg=dict(type='Pretrained', checkpoint='a.pth')
    )


def test_vit_is_what_extraction_makes_of_other_supernets(elastic_vit):
    settings = dict(img_size=(32, 48), patch_size=8, in_channels=1, layer_scale_init_value=0)
    arch = dict(embed_dims=64, num_layers=4, num_heads=4, feedforward_channels=160)
    config, _ = elastic_vit(arch=arch, **settings).extract(Subnet(48, 3))
    expected = config | dict(type='mmpretrain.VisionTransformer', init_cfg=None)
    assert vit('48x3', head_dim=16, mlp_ratio=2.5, **settings) == expected


def test_names_and_options_of_vit():
    assert [vit(name) for name in ('small', 'base')] == [vit('384x12'), vit('768x12')]
    assert vit('small', drop_path_rate=0.2, qkv_bias=False) == vit('small') | dict(drop_path_rate=0.2, qkv_bias=False)


@pytest.mark.parametrize(
    ('subnet', 'options', 'message'),
    [
        ('giant', {}, 'giant'),
        ('400x12', {}, '400x12.*64'),
        ('0x12', {}, '0x12'),
        ('64x0', {}, '64x0'),
        ('64x4', dict(mlp_ratio=1.01), r'1\.01'),
    ],
)
def test_sizes_that_are_none(subnet, options, message):
    with pytest.raises(ValueError, match=message):
        vit(subnet, **options)


@pytest.mark.parametrize(
    ('depth', 'ends'),
    [(4, (0, 1, 2, 3)), (5, (0, 1, 2, 4)), (12, (2, 5, 8, 11)), (13, (2, 5, 8, 12)), (24, (5, 11, 17, 23))],
)
def test_feature_maps_end_the_quarters_of_the_depth(depth, ends):
    for task in (detector, segmentor):
        assert task(vit(f'384x{depth}'))['backbone']['out_indices'] == ends
    assert linear_segmentor(vit(f'384x{depth}'))['backbone']['out_indices'] == (depth - 1,)


@pytest.mark.parametrize('patch_size', [8, 16])
@pytest.mark.parametrize(('task', 'registry'), [(detector, MMDET), (segmentor, MMSEG)])
def test_strides_and_channels_are_what_comes_out(task, registry, patch_size):
    """Of the library's own registry, as its runner builds them."""
    model = task(vit('48x4', patch_size=patch_size, **TINY))
    with DefaultScope.overwrite_default_scope(registry.scope):
        backbone, neck = registry.build(model['backbone']), registry.build(model['neck'])
    neck.eval()
    with torch.no_grad():
        maps = backbone(torch.rand(1, 3, 64, 128))
        pyramid = neck(maps)
    strides = [(64 / f.shape[2], 128 / f.shape[3]) for f in pyramid]
    assert strides == [(s, s) for s in (4, 8, 16, 32, 64)][: len(pyramid)]
    if task is detector:
        assert [f.shape[1] for f in maps] == model['neck'][1]['in_channels']
        assert [f.shape[1] for f in pyramid] == [256] * 5
        assert detector(vit('48x4', **TINY), channels=64)['neck'][1]['out_channels'] == 64
    else:
        assert [f.shape[1] for f in pyramid] == model['decode_head']['in_channels']
        assert pyramid[model['auxiliary_head']['in_index']].shape[1] == model['auxiliary_head']['in_channels']


@pytest.mark.parametrize('patch_size', [4, 14, 32, (16, 8)])
def test_patches_without_a_pyramid(patch_size):
    backbone = vit('384x12', patch_size=patch_size)
    for task in (detector, segmentor):
        with pytest.raises(ValueError, match=r'patch_size.*8 and 16'):
            task(backbone)
    assert linear_segmentor(backbone)['decode_head'] == dict(in_channels=384, channels=384, in_index=0)


def test_too_shallow_for_four_feature_maps():
    for task in (detector, segmentor):
        with pytest.raises(ValueError, match='3 blocks'):
            task(vit('384x3'))


@pytest.mark.parametrize('frozen', [linear_segmentor, lambda backbone: classifier(backbone, frozen=True)])
def test_frozen_backbones(frozen):
    network = MODELS.build(frozen(vit('48x2', **TINY))['backbone'])
    assert not any(param.requires_grad for param in network.parameters())


@pytest.mark.parametrize('task', [detector, segmentor, classifier])
def test_the_others_train_everything(task):
    network = MODELS.build(task(vit('48x4', **TINY))['backbone'])
    assert all(param.requires_grad for param in network.parameters())


def test_channels_of_the_classifier():
    model = classifier(vit('48x2', **TINY))
    (features,) = MODELS.build(model['backbone'])(torch.rand(2, 3, 64, 64))
    assert features.shape == (2, model['head']['in_channels'])
    assert model['neck'] is None


@pytest.mark.parametrize('task', TASKS)
def test_arguments_are_not_changed(task):
    backbone = vit('384x12')
    task(backbone)
    assert backbone == vit('384x12')


@pytest.mark.parametrize('task', TASKS)
def test_unknown_backbones(task):
    with pytest.raises(ValueError, match=r'mmpretrain\.ResNeXt.*mmpretrain\.VisionTransformer'):
        task(dict(type='mmpretrain.ResNeXt', depth=50))


@pytest.mark.parametrize('task', TASKS)
def test_what_is_up_to_the_task_cannot_be_set(task):
    with pytest.raises(ValueError, match='out_type'):
        task(vit('384x12', out_type='raw'))
