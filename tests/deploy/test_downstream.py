import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

MMDET, MMSEG = (pytest.importorskip(f'{library}.registry').MODELS for library in ('mmdet', 'mmseg'))

from poa_mm.deploy.downstream import classifier, detector, linear_segmentor, resnet, segmentor, swin, vit
from poa_mm.elastic import Subnet
from poa_mm.models import BottleneckResNet, ElasticResNet, ElasticSwinTransformer, ElasticVisionTransformer

TINY = dict(head_dim=16, img_size=64)
TASKS = (detector, segmentor, linear_segmentor, classifier)
# What else the tiny supernets of every family are made of than the defaults.
SIZES = dict(
    vit=dict(TINY, layer_scale_init_value=0.5),
    swin=dict(depths=(1, 1, 4, 1), head_dim=8, img_size=64, window_size=4),
    resnet=dict(stem_channels=8, base_channels=8, num_groups=4),
)
FUNCTIONS = dict(vit=vit, swin=swin, resnet=resnet)
SUBNETS = [('vit', '48x4'), ('swin', '24x3'), ('resnet', '8x3-4-6-3'), ('resnet', '12x3-2-1-3')]
of_every_family = pytest.mark.parametrize(('family', 'subnet'), SUBNETS)
OWN = 'BottleneckResNet'


def tiny(family, subnet, **options):
    return FUNCTIONS[family](subnet, **SIZES[family] | options)


def as_downstream(extracted):
    kind = extracted['type']
    return extracted | dict(type=kind if kind == OWN else f'mmpretrain.{kind}', init_cfg=None)


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


@pytest.mark.parametrize(
    ('function', 'supernet', 'subnets'),
    [
        (swin, ElasticSwinTransformer, None),  # all
        (resnet, ElasticResNet, ['64x3-4-6-3', '64x3-4-23-3', '128x3-8-36-3', '96x3-4-6-3', '64x3-5-7-3']),
    ],
)
def test_is_what_extraction_makes_of_the_paper_s_supernet(function, supernet, subnets):
    with torch.device('meta'):
        network = supernet()
    kinds = set()
    for subnet in map(network.space.parse, subnets or network.space):
        extracted, _ = network.extract(subnet)
        kinds.add(extracted['type'])
        assert function(str(subnet)) == as_downstream(extracted)
        assert function(subnet, 'a.pth')['init_cfg'] == dict(type='Pretrained', checkpoint='a.pth')
    assert kinds == ({'SwinTransformer'} if function is swin else {'ResNet', OWN})
    for name, subnet in network.space.aliases.items():
        assert function(name) == function(str(subnet))
        assert function(name, drop_path_rate=0.2) == function(str(subnet)) | dict(drop_path_rate=0.2)


@pytest.mark.parametrize('family', SIZES)
def test_is_what_extraction_makes_of_every_subnet_of_small_supernets(family, supernets):
    supernet = MODELS.build(supernets[family])
    for subnet in supernet.space:
        assert tiny(family, subnet) == as_downstream(supernet.extract(subnet)[0])


def test_is_what_extraction_makes_of_supernets_of_other_inputs():
    settings = dict(img_size=(32, 64), patch_size=2, in_channels=1, window_size=2)
    arch = dict(embed_dims=8, depths=[1, 2, 5, 1], num_heads=[2, 4, 8, 16])
    extracted, _ = ElasticSwinTransformer(arch=arch, depths=(3, 5), **settings).extract(Subnet(8, 3))
    assert swin('8x3', depths=(1, 2, 5, 1), head_dim=4, **settings) == as_downstream(extracted)
    settings = dict(in_channels=1, stem_channels=4, base_channels=2, strides=(1, 2, 2, 1), num_groups=2)
    extracted, _ = ElasticResNet(stage_blocks=(1, 2, 2, 1), mid_channels=4, widths=[4], **settings).extract(
        Subnet(4, (1, 1, 2, 1))
    )
    assert resnet('4x1-1-2-1', **settings) == as_downstream(extracted)


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
    ('function', 'subnet', 'message'),
    [
        (swin, 'giant', 'giant'),
        (swin, '100x6', '100x6.*16'),
        (swin, '0x6', '0x6.*16'),
        (swin, '96x2-2-6-2', '96x2-2-6-2'),
        (swin, '96x19', r'19 is not in 1\.\.18'),
        (resnet, 'r18', 'r18'),
        (resnet, '64x50', '64x50.*four stages'),
        (resnet, '64x3-4-6', '64x3-4-6 .*four stages'),
        (resnet, '64x3-4-0-3', '64x3-4-0-3'),
        (resnet, '40x3-4-6-3', '40x3-4-6-3.*32 groups'),
        (resnet, '0x3-4-6-3', '0x3-4-6-3'),
    ],
)
def test_sizes_that_are_none_of_the_others(function, subnet, message):
    with pytest.raises(ValueError, match=message):
        function(subnet)


@pytest.mark.parametrize(
    ('depth', 'ends'),
    [(4, (0, 1, 2, 3)), (5, (0, 1, 2, 4)), (12, (2, 5, 8, 11)), (13, (2, 5, 8, 12)), (24, (5, 11, 17, 23))],
)
def test_feature_maps_end_the_quarters_of_the_depth(depth, ends):
    for task in (detector, segmentor):
        assert task(vit(f'384x{depth}'))['backbone']['out_indices'] == ends
    assert linear_segmentor(vit(f'384x{depth}'))['backbone']['out_indices'] == (depth - 1,)


@pytest.mark.parametrize(('family', 'subnet', 'options'), [
    *((*case, {}) for case in SUBNETS), ('vit', '48x4', dict(patch_size=8)),
])  # fmt: skip
@pytest.mark.parametrize(('task', 'registry'), [(detector, MMDET), (segmentor, MMSEG)])
def test_strides_and_channels_are_what_comes_out(task, registry, family, subnet, options):
    """Of the library's own registry, as its runner builds them."""
    model = task(tiny(family, subnet, **options))
    with DefaultScope.overwrite_default_scope(registry.scope):
        backbone = registry.build(model['backbone'])
        neck = registry.build(model['neck']) if model['neck'] else torch.nn.Identity()
    assert isinstance(backbone, BottleneckResNet) == (subnet == '12x3-2-1-3')
    neck.eval()
    with torch.no_grad():
        maps = backbone(torch.rand(1, 3, 64, 128))
        pyramid = neck(maps)
    strides = [(64 / f.shape[2], 128 / f.shape[3]) for f in pyramid]
    assert strides == [(s, s) for s in (4, 8, 16, 32, 64)][: len(pyramid)]
    if task is detector:
        fpn = model['neck'] if isinstance(model['neck'], dict) else model['neck'][1]
        assert [f.shape[1] for f in maps] == fpn['in_channels']
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


@pytest.mark.parametrize(
    ('backbone', 'strides'),
    [(swin('tiny', patch_size=2), r'2, 4, 8, 16'), (resnet('r50', strides=(1, 2, 2, 1)), r'4, 8, 16, 16')],
)
def test_stages_of_other_strides(backbone, strides):
    for task in (detector, segmentor):
        with pytest.raises(ValueError, match=rf'strides \({strides}\); valid: \(4, 8, 16, 32\)'):
            task(backbone)
    assert linear_segmentor(backbone)['decode_head']['in_channels'] == (768 if '2,' in strides[:2] else 2048)


def test_too_shallow_for_four_feature_maps():
    for task in (detector, segmentor):
        with pytest.raises(ValueError, match='3 blocks'):
            task(vit('384x3'))


@of_every_family
@pytest.mark.parametrize('frozen', [linear_segmentor, lambda backbone: classifier(backbone, frozen=True)])
def test_frozen_backbones(frozen, family, subnet):
    network = MODELS.build(frozen(tiny(family, subnet))['backbone'])
    network.train()  # as every run does before the first iteration
    assert not any(param.requires_grad for param in network.parameters())


@of_every_family
@pytest.mark.parametrize('task', [detector, segmentor, classifier])
def test_the_others_train_everything(task, family, subnet):
    network = MODELS.build(task(tiny(family, subnet))['backbone'])
    network.train()
    assert all(param.requires_grad for param in network.parameters())


@of_every_family
def test_channels_of_the_classifier(family, subnet):
    model = classifier(tiny(family, subnet))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        network = MODELS.build(
            dict(model, type='ImageClassifier', head=dict(model['head'], type='LinearClsHead', num_classes=3))
        )
    assert network(torch.rand(2, 3, 64, 64)).shape == (2, 3)
    (features,) = network.extract_feat(torch.rand(2, 3, 64, 64))
    assert features.shape == (2, model['head']['in_channels'])


@of_every_family
@pytest.mark.parametrize('task', TASKS)
def test_arguments_are_not_changed(task, family, subnet):
    backbone = tiny(family, subnet)
    task(backbone)
    assert backbone == tiny(family, subnet)


@pytest.mark.parametrize('task', TASKS)
def test_unknown_backbones(task):
    with pytest.raises(ValueError, match=r'mmpretrain\.ResNeXt.*mmpretrain\.VisionTransformer'):
        task(dict(type='mmpretrain.ResNeXt', depth=50))


@pytest.mark.parametrize('task', TASKS)
def test_what_is_up_to_the_task_cannot_be_set(task):
    with pytest.raises(ValueError, match='out_type'):
        task(vit('384x12', out_type='raw'))
    for backbone in (swin('tiny', out_indices=(1,)), resnet('r50', out_indices=(1,))):
        with pytest.raises(ValueError, match='out_indices'):
            task(backbone)
