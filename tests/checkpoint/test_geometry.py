"""What names and shapes of weights do not show is in the file, and compared."""

import json
from fractions import Fraction

import pytest
import torch
from mmengine.model import ImgDataPreprocessor
from mmengine.registry import MODELS
from mmpretrain.models import ClsDataPreprocessor
from mmseg.models import SegDataPreProcessor

from poa_mm.checkpoint import CheckpointError, Resizing, compare, compare_normalisation, description_of, metadata_of

SUBNETS = dict(vit='32x3', swin='16x3', resnet='8x3-4-6-3', plain='12x3-2-1-3')
NORMALISATION = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)


@pytest.fixture(scope='module')
def extracted(supernets):
    """Config of a network of each family, as extraction gives it."""
    configs = {}
    for family, subnet in SUBNETS.items():
        supernet = MODELS.build(supernets['resnet' if family == 'plain' else family])
        configs[family] = supernet.extract(supernet.space.parse(subnet))[0]
    return configs


def build(config):
    kind = config['type']
    return MODELS.build({**config, 'type': kind if kind == 'BottleneckResNet' else f'mmpretrain.{kind}'})


def differences(config, **changes):
    """What the network of a config with changes does not share with that of the config."""
    found, resizing = compare(build(config | changes), description_of(metadata_of(config, NORMALISATION), 'file'))
    return [str(difference) for difference in found], resizing


@pytest.mark.parametrize('family', SUBNETS)
def test_the_same_network(extracted, family):
    assert differences(extracted[family]) == ([], Resizing())


@pytest.mark.parametrize(
    ('family', 'changes'),
    [
        ('vit', dict(drop_path_rate=0.3, drop_rate=0.1)),
        ('vit', dict(out_type='featmap', out_indices=(0, 2))),
        ('vit', dict(frozen_stages=2)),
        ('swin', dict(drop_path_rate=0.3, with_cp=True, out_indices=(0, 1, 2, 3))),
        ('swin', dict(frozen_stages=1, norm_eval=True)),
        ('swin', dict(img_size=96)),
        ('resnet', dict(out_indices=(0, 1), frozen_stages=1, with_cp=True)),
        ('plain', dict(norm_eval=True, zero_init_residual=False)),
    ],
)
def test_what_a_task_may_set(extracted, family, changes):
    assert differences(extracted[family], **changes) == ([], Resizing())


@pytest.mark.parametrize(
    ('family', 'changes', 'expected'),
    [
        ('vit', dict(arch=dict(embed_dims=32, num_layers=3, num_heads=4, feedforward_channels=128)),
         'layers.*.attn.num_heads is 4, in the file 2'),
        ('vit', dict(norm_cfg=dict(type='LN', eps=1e-5)), 'layers.*.ln1.eps is 1e-05, in the file 1e-06'),
        ('vit', dict(patch_cfg=dict(stride=8)), 'patch_embed.projection.stride is 8, in the file 16'),
        ('vit', dict(patch_cfg=dict(dilation=2)), 'patch_embed.projection.dilation is 2, in the file 1'),
        ('vit', dict(layer_cfgs=dict(act_cfg=dict(type='ReLU'))),
         "layers.*.ffn.layers.*.*.type is 'ReLU', in the file 'GELU'"),
        ('vit', dict(interpolate_mode='bilinear'), "interpolate_mode is 'bilinear', in the file 'bicubic'"),
        ('swin', dict(arch=dict(embed_dims=16, depths=[1, 1, 3, 1], num_heads=[1, 2, 4, 8])),
         'num_heads is (1, 2, 4, 8), in the file (2, 4, 8, 16)'),
        ('swin', dict(stage_cfgs=dict(block_cfgs=dict(shift=True))), 'attn.shift_size is 2, in the file 0'),
        ('swin', dict(stage_cfgs=dict(block_cfgs=dict(shift=False))), 'attn.shift_size is 0, in the file 2'),
        ('swin', dict(pad_small_map=False), 'attn.pad_small_map is False, in the file True'),
        ('swin', dict(patch_cfg=dict(stride=2)), 'patch_embed.projection.stride is 2, in the file 4'),
        ('resnet', dict(norm_cfg=dict(type='GN', num_groups=2)), 'gn1.num_groups is 2, in the file 4'),
        ('resnet', dict(norm_cfg=dict(type='GN', num_groups=4, eps=1e-3)), 'gn1.eps is 0.001, in the file 1e-05'),
        ('resnet', dict(strides=(1, 2, 2, 1)), 'layer4.*.conv2.stride is 1, in the file 2'),
        ('resnet', dict(dilations=(1, 1, 1, 2)), 'layer4.*.conv2.dilation is 2, in the file 1'),
        ('resnet', dict(style='caffe'), "style is 'caffe', in the file 'pytorch'"),
        ('plain', dict(strides=(1, 2, 1, 1)), 'layer3.*.conv2.stride is 1, in the file 2'),
        ('plain', dict(norm_cfg=dict(type='GN', num_groups=1)), 'gn1.num_groups is 1, in the file 4'),
    ],
)  # fmt: skip
def test_what_leaves_no_trace_in_names_and_shapes(extracted, family, changes, expected):
    found, _ = differences(extracted[family], **changes)
    assert any(expected in difference for difference in found), found


@pytest.mark.parametrize('depth', [6, 12, 18])
def test_blocks_of_another_supernet_are_shifted_otherwise(supernets, depth):
    """Four of six blocks are others than four of eighteen."""
    supernet = MODELS.build(
        supernets['swin'] | dict(arch=dict(supernets['swin']['arch'], depths=[1, 1, depth, 1]), depths=[4, depth])
    )
    description = description_of(metadata_of(supernet.extract(supernet.space.parse('16x4'))[0], NORMALISATION), 'file')
    plain = dict(type='SwinTransformer', img_size=64, window_size=4, pad_small_map=True)
    network = build(dict(plain, arch=dict(embed_dims=16, depths=[1, 1, 4, 1], num_heads=[2, 4, 8, 16])))
    found, _ = compare(network, description)
    shifts = [block.attn.shift_size > 0 for block in description.network.stages[2].blocks]
    assert bool(found) == (shifts != [False, True, False, True])


@pytest.mark.parametrize(
    ('family', 'changes', 'expected'),
    [
        ('vit', dict(img_size=128), Resizing(grid=(8, 8))),
        ('vit', dict(img_size=(32, 128)), Resizing(grid=(2, 8))),  # as many patches
        ('vit', dict(img_size=(128, 32)), Resizing(grid=(8, 2))),
        ('swin', dict(window_size=7), Resizing(window=7)),
        ('swin', dict(window_size=2), Resizing(window=2)),
    ],
)
def test_what_can_be_resized(extracted, family, changes, expected):
    assert differences(extracted[family], **changes) == ([], expected)


def test_other_shifts_are_found_among_other_windows(extracted):
    found, resizing = differences(extracted['swin'], window_size=7, stage_cfgs=dict(block_cfgs=dict(shift=True)))
    assert resizing == Resizing(window=7)
    assert found == ['stages.*.blocks.*.attn.shift_size is 3, in the file 0']


def test_files_without_description():
    for meta in (None, {}, {'subnet': '32x2'}, {'backbone': 3}, [1]):
        assert description_of(meta, 'file') is None


@pytest.mark.parametrize(
    'backbone',
    [
        'no json',
        '[1]',
        '{}',
        '{"type": "os.system"}',
        '{"type": "torch.nn.Linear", "in_features": 1}',
        '{"type": "VisionTransformer", "arch": {"embed_dims": 1}}',
        '{"type": "VisionTransformer", "norm_cfg": {"type": "os.mkdir"}}',
        '{"type": "ResNet", "depth": 50, "norm_cfg": {"type": ["GN"]}}',
        '{"type": "SwinTransformer", "unknown": 1}',
    ],
)
def test_descriptions_that_are_none(backbone):
    with pytest.raises(CheckpointError, match='file: cannot build the network that it says'):
        description_of({'backbone': backbone}, 'file')


def test_metadata_is_text(extracted):
    meta = metadata_of(extracted['vit'], NORMALISATION)
    assert all(isinstance(value, str) for value in meta.values())
    assert json.loads(meta['data_preprocessor']) == NORMALISATION
    assert description_of(meta, 'file').normalisation == NORMALISATION
    with pytest.raises(TypeError):
        metadata_of(dict(extracted['vit'], ratio=Fraction(1, 2)), NORMALISATION)


STATISTICS = dict(mean=NORMALISATION['mean'], std=NORMALISATION['std'])
OTHERS = [
    (dict(mean=[0.0] * 3, std=NORMALISATION['std']), 'mean'),
    (dict(mean=NORMALISATION['mean'], std=[1.0] * 3), 'std'),
    (dict(mean=NORMALISATION['mean'][::-1], std=NORMALISATION['std'][::-1]), 'mean'),
    (dict(mean=[120.0], std=[57.0]), 'mean'),
]


@pytest.mark.parametrize(
    ('kind', 'flip'),
    [(ClsDataPreprocessor, 'to_rgb'), (SegDataPreProcessor, 'bgr_to_rgb'), (ImgDataPreprocessor, 'bgr_to_rgb')],
)
def test_normalisation(kind, flip):
    assert compare_normalisation(kind(**STATISTICS, **{flip: True}), NORMALISATION) == ([], True)
    ((difference,), _) = compare_normalisation(kind(**STATISTICS), NORMALISATION)
    assert str(difference) == 'data_preprocessor: channels turned from BGR to RGB is False, in the file True'
    for other, key in OTHERS:
        found, _ = compare_normalisation(kind(**other, **{flip: True}), NORMALISATION)
        assert found[0].name == f'data_preprocessor.{key}'
        assert found[0].described == NORMALISATION[key]


def test_models_that_leave_normalisation_to_the_pipeline():
    assert compare_normalisation(ClsDataPreprocessor(), NORMALISATION) == ([], False)
    assert compare_normalisation(torch.nn.Identity(), NORMALISATION) == ([], False)
    nothing = dict(mean=None, std=None, to_rgb=False)
    assert compare_normalisation(ClsDataPreprocessor(), nothing) == ([], True)
    assert compare_normalisation(ClsDataPreprocessor(**STATISTICS), nothing)[0]


def test_one_number_stands_for_all_channels():
    stored = dict(mean=[78.0] * 3, std=[95.0] * 3, to_rgb=True)
    assert compare_normalisation(ClsDataPreprocessor(mean=[78.0], std=[95.0]), stored) == ([], True)
