import copy
from functools import cache

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import nn

mmdet = pytest.importorskip('mmdet')

from poa_mm.engine.optimizers.layer_decay import depth_function

RATE = 0.5
BACKBONES = dict(
    vit=dict(
        type='mmpretrain.VisionTransformer',
        arch=dict(embed_dims=16, num_layers=3, num_heads=2, feedforward_channels=32),
        img_size=16,
        patch_size=4,
        out_type='featmap',
        out_indices=(0, 1, 2, 2),
    ),
    swin=dict(
        type='mmpretrain.SwinTransformer',
        arch=dict(embed_dims=8, depths=[1, 1, 2, 1], num_heads=[1, 1, 2, 2]),
        img_size=32,
        window_size=2,
        out_indices=(0, 1, 2, 3),
    ),
    resnet=dict(
        type='mmpretrain.ResNet',
        depth=50,
        stem_channels=4,
        base_channels=4,
        out_indices=(0, 1, 2, 3),
        init_cfg=dict(type='Pretrained', checkpoint='not read here'),
    ),
)
CHANNELS = dict(vit=[16] * 4, swin=[8, 16, 32, 64], resnet=[16, 32, 64, 128])
# By hand: the exponent of RATE, the layers between the parameter's and the last.
EXPONENTS = dict(
    vit={  # 5 layers: embeddings, 3 blocks, what follows
        'backbone.cls_token': 4,
        'backbone.pos_embed': 4,
        'backbone.patch_embed.projection.weight': 4,
        'backbone.layers.0.attn.qkv.weight': 3,
        'backbone.layers.2.ffn.layers.1.bias': 1,
        'backbone.ln1.weight': 0,
    },
    swin={  # 7 layers: embeddings, 5 blocks, what follows
        'backbone.patch_embed.projection.weight': 6,
        'backbone.stages.0.blocks.0.attn.w_msa.qkv.weight': 5,
        'backbone.stages.0.downsample.reduction.weight': 5,
        'backbone.stages.1.blocks.0.ffn.layers.1.bias': 4,
        'backbone.stages.2.blocks.1.norm1.weight': 2,
        'backbone.norm3.weight': 0,
    },
    resnet={  # 8 layers: stem, stage 1, stages 2 and 3 in two parts each, stage 4, what follows
        'backbone.conv1.weight': 7,
        'backbone.layer1.2.conv1.weight': 6,
        'backbone.layer2.0.conv1.weight': 5,
        'backbone.layer2.3.bn3.bias': 4,
        'backbone.layer3.0.conv1.weight': 3,
        'backbone.layer3.5.conv1.weight': 2,
        'backbone.layer4.2.conv1.weight': 1,
    },
)
HEADS = dict(
    mmdet=('neck.lateral_convs.0.conv.weight', 'rpn_head.rpn_conv.bias', 'roi_head.bbox_head.2.fc_cls.weight'),
    mmseg=('decode_head.conv_seg.weight', 'decode_head.conv_seg.bias', 'auxiliary_head.conv_seg.weight'),
    mmpretrain=('head.fc.weight', 'head.fc.bias'),
)


def model_config(library, backbone):
    channels = CHANNELS[backbone]
    backbone = copy.deepcopy(BACKBONES[backbone])
    if library == 'mmdet':
        model = Config.fromfile(f'{mmdet.__path__[0]}/.mim/configs/_base_/models/cascade-mask-rcnn_r50_fpn.py').model
        model.neck.in_channels = channels
        for head in model.roi_head.bbox_head:
            head.fc_out_channels = 8
        return dict(model, type='mmdet.CascadeRCNN', backbone=backbone, data_preprocessor=None)
    if library == 'mmseg':
        head = dict(type='FCNHead', num_convs=0, concat_input=False, num_classes=3, norm_cfg=None)
        head |= dict(in_channels=channels[3], channels=channels[3], in_index=3)
        return dict(type='mmseg.EncoderDecoder', backbone=backbone, decode_head=head, auxiliary_head=head)
    head = dict(type='LinearClsHead', num_classes=3, in_channels=channels[3])
    return dict(type='mmpretrain.ImageClassifier', backbone=backbone, head=head)


def build(library, cfg):
    with DefaultScope.overwrite_default_scope(library):  # other tests may have left another one
        return MODELS.build(cfg)


@cache  # what is built is not changed
def build_model(library, backbone):
    return build(library, model_config(library, backbone))


def settings_of(model, **paramwise_cfg):
    """The group of each trained parameter by its name; the optimizer."""
    cfg = dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.2),
        constructor='LayerDecayOptimWrapperConstructor',
        paramwise_cfg=dict(layer_decay_rate=RATE) | paramwise_cfg,
    )
    optimizer = build_optim_wrapper(model, cfg).optimizer
    names = {param: name for name, param in model.named_parameters()}
    return {names[param]: group for group in optimizer.param_groups for param in group['params']}, optimizer


@pytest.mark.parametrize('backbone', BACKBONES)
@pytest.mark.parametrize('library', HEADS)
def test_learning_rates_by_hand(library, backbone):
    model = build_model(library, backbone)
    settings, _ = settings_of(model)
    exponents = EXPONENTS[backbone] | dict.fromkeys(HEADS[library], 0)
    found = {name: (settings[name]['lr'], settings[name]['lr_scale']) for name in exponents}
    assert found == {name: pytest.approx((0.1 * RATE**e, RATE**e)) for name, e in exponents.items()}
    assert settings.keys() == {name for name, _ in model.named_parameters()}


def test_every_parameter_is_in_one_group_and_groups_are_few():
    model = build_model('mmdet', 'vit')
    _, optimizer = settings_of(model, norm_decay_mult=0.0)
    params = [param for group in optimizer.param_groups for param in group['params']]
    assert len(params) == len(set(params)) == len(list(model.parameters()))
    assert len(optimizer.param_groups) == 9  # 5 layers, with decay and without; the embeddings have no norm


def test_weight_decay_by_hand():
    settings, _ = settings_of(
        build_model('mmseg', 'vit'),
        norm_decay_mult=0.0,
        bias_decay_mult=0.5,
        custom_keys={'.cls_token': dict(decay_mult=0.0), 'auxiliary_head': dict(decay_mult=2.0)},
    )
    expected = {
        'backbone.cls_token': 0.0,
        'backbone.pos_embed': 0.2,
        'backbone.layers.0.ln1.weight': 0.0,
        'backbone.layers.0.ln1.bias': 0.0,
        'backbone.layers.0.attn.qkv.weight': 0.2,
        'backbone.layers.0.attn.qkv.bias': 0.1,
        'decode_head.conv_seg.weight': 0.2,
        'decode_head.conv_seg.bias': 0.1,
        'auxiliary_head.conv_seg.bias': 0.4,
    }
    assert {name: settings[name]['weight_decay'] for name in expected} == pytest.approx(expected)


def test_flat_parameters_without_decay():
    settings, _ = settings_of(build_model('mmpretrain', 'swin'), flat_decay_mult=0.0)
    flat = {name for name, param in build_model('mmpretrain', 'swin').named_parameters() if param.ndim == 1}
    assert {name for name, group in settings.items() if group['weight_decay'] == 0} == flat


def test_relative_position_biases_without_decay():
    """They are tables, which only their name tells from weights."""
    model = build_model('mmdet', 'swin')
    settings, _ = settings_of(model, custom_keys={'.relative_position_bias_table': dict(decay_mult=0.0)})
    undecayed = {name for name, group in settings.items() if group['weight_decay'] == 0}
    assert undecayed == {name for name, _ in model.named_parameters() if name.endswith('relative_position_bias_table')}
    assert len(undecayed) == 5


def test_frozen_parameters_are_left_out():
    cfg = model_config('mmseg', 'vit')
    cfg['backbone']['frozen_stages'] = 3
    settings, _ = settings_of(build('mmseg', cfg))
    assert {name.split('.')[0] for name in settings} == {'decode_head', 'auxiliary_head'}


class Tied(nn.Module):
    """A head that reads with the matrix that another one writes with."""

    def __init__(self):
        super().__init__()
        self.backbone = MODELS.build(BACKBONES['vit'])
        self.encode, self.decode = nn.Linear(16, 16), nn.Linear(16, 16)
        self.decode.weight = self.encode.weight


def test_shared_parameters_are_in_one_group():
    model = Tied()
    settings, optimizer = settings_of(model, custom_keys={'decode': dict(decay_mult=0.0)})
    assert sum(param is model.encode.weight for group in optimizer.param_groups for param in group['params']) == 1
    assert settings['encode.weight']['weight_decay'] == 0.2
    assert settings['decode.bias']['weight_decay'] == 0.0


def test_backbones_without_depth_are_refused():
    model = nn.Module()
    with pytest.raises(TypeError, match=r"get_layer_depth.*Module's is missing"):
        depth_function(model)
    model.backbone = nn.Linear(1, 1)
    with pytest.raises(TypeError, match=r"get_layer_depth.*Module's is Linear"):
        settings_of(model)


def test_options_that_would_be_ignored_are_refused():
    model = build_model('mmpretrain', 'vit')
    with pytest.raises(ValueError, match=r"'decay_rate', 'num_layers'; .* knows layer_decay_rate, norm_decay_mult"):
        settings_of(model, decay_rate=0.9, num_layers=12)
    with pytest.raises(ValueError, match=r"'head'.*'lr_mult' does not go"):
        settings_of(model, custom_keys=dict(head=dict(lr_mult=10)))


class Plain(torch.optim.Optimizer):
    """An optimizer without weight decay."""

    def __init__(self, params, lr=0.3):
        super().__init__(params, dict(lr=lr))

    def step(self, closure=None):
        for group in self.param_groups:
            for param in group['params']:
                param.data -= group['lr'] * param.grad


class Hidden(torch.optim.AdamW):
    """One whose signature does not show what it decays by."""

    def __init__(self, params, **options):
        super().__init__(params, **dict(lr=0.25, weight_decay=0.125) | options)


def optimizer_of(optimizer, kind='LayerDecayOptimWrapperConstructor', **paramwise_cfg):
    cfg = dict(type='OptimWrapper', optimizer=optimizer, constructor=kind, paramwise_cfg=paramwise_cfg)
    return build_optim_wrapper(build_model('mmpretrain', 'vit'), cfg).optimizer


@pytest.mark.parametrize(
    'optimizer',
    [
        dict(type='AdamW', lr=0.1),
        dict(type=torch.optim.AdamW, lr=0.1, betas=(0.9, 0.95)),
        dict(type='SGD', lr=0.1, momentum=0.9),
        dict(type='RMSprop'),
        dict(type='Adam'),
        dict(type=Hidden),
        dict(type=Hidden, lr=0.5),
    ],
)
@pytest.mark.parametrize('paramwise_cfg', [{}, dict(flat_decay_mult=0.0, norm_decay_mult=0.5, bias_decay_mult=0.0)])
def test_what_the_config_leaves_open_is_the_default_of_the_optimizer(optimizer, paramwise_cfg):
    kind = optimizer['type'] if isinstance(optimizer['type'], type) else getattr(torch.optim, optimizer['type'])
    options = {key: value for key, value in optimizer.items() if key != 'type'}
    default = kind([nn.Parameter(torch.zeros(1))], **options).defaults
    found = optimizer_of(optimizer, layer_decay_rate=RATE, **paramwise_cfg)
    assert found.defaults == default
    assert max(group['lr'] for group in found.param_groups) == default['lr']
    assert max(group['weight_decay'] for group in found.param_groups) == default['weight_decay']
    if paramwise_cfg:
        assert min(group['weight_decay'] for group in found.param_groups) == 0


def test_an_optimizer_without_weight_decay():
    found = optimizer_of(dict(type=Plain), layer_decay_rate=RATE)
    rates = sorted({group['lr'] for group in found.param_groups})
    assert rates == pytest.approx([0.3 * RATE**e for e in (4, 3, 2, 1, 0)])
    assert not any('weight_decay' in group for group in found.param_groups)
    for scaled in (dict(flat_decay_mult=0.0), dict(custom_keys=dict(head=dict(decay_mult=0.0)))):
        with pytest.raises(ValueError, match=r'scales the weight decay \((flat_decay_mult|head)\), but .*Plain.* none'):
            optimizer_of(dict(type=Plain), **scaled)


class NeedsLr(torch.optim.SGD):
    def __init__(self, params, lr):
        super().__init__(params, lr=lr)


def test_an_optimizer_that_has_no_learning_rate_of_its_own():
    with pytest.raises(ValueError, match=r"default lr and weight_decay of optimizer .*NeedsLr.*; say both: .*'lr'"):
        optimizer_of(dict(type=NeedsLr), layer_decay_rate=RATE)
    found = optimizer_of(dict(type=NeedsLr, lr=0.5), layer_decay_rate=RATE)
    assert {group['weight_decay'] for group in found.param_groups} == {0}
