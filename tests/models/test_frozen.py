"""Frozen parts of a network are the same at each step."""

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope, init_default_scope
from mmpretrain.registry import MODELS

from poa_mm.models.frozen import silence_frozen

VIT = dict(
    type='VisionTransformer',
    arch=dict(embed_dims=32, num_layers=4, num_heads=2, feedforward_channels=64),
    img_size=8,
    patch_size=4,
    drop_path_rate=0.5,
    drop_rate=0.3,
    out_type='cls_token',
)


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmpretrain')
    yield
    DefaultScope._instance_dict.clear()


def outputs_alike(model):
    model.train()
    images = torch.randn(4, 3, 8, 8)
    return torch.equal(model(images)[0], model(images)[0])


def test_a_frozen_network():
    model = MODELS.build(dict(VIT, frozen_stages=4))
    assert not outputs_alike(model), 'the fault of the library that this is about'
    assert silence_frozen(model) > 0
    assert outputs_alike(model)
    assert silence_frozen(model) == 0


def test_only_what_is_frozen():
    model = MODELS.build(dict(VIT, frozen_stages=2))
    silence_frozen(model)
    model.train()
    rates = [
        layer.ffn.dropout_layer.drop_prob for layer in model.layers if hasattr(layer.ffn.dropout_layer, 'drop_prob')
    ]
    assert rates[-1] == 0.5 and not outputs_alike(model)
    images = torch.randn(4, 3, 8, 8)
    found = []
    for _ in range(2):
        x = model.patch_embed(images)[0]
        for layer in model.layers[:2]:
            x = layer(x)
        found.append(x)
    assert torch.equal(*found)


def test_a_network_that_trains_is_left_alone():
    model = MODELS.build(VIT)
    assert silence_frozen(model) == 0
    assert not outputs_alike(model)


@pytest.mark.parametrize('rate', [0.0, 0.7])
def test_a_linear_probe_silences_its_backbone(rate):
    backbone = dict(VIT, frozen_stages=4, drop_path_rate=rate, drop_rate=0.0)
    head = dict(type='LinearSweepHead', num_classes=3, in_channels=32, lrs=[0.1])
    model = MODELS.build(dict(type='ImageClassifier', backbone=backbone, head=head))
    build_optim_wrapper(
        model, dict(constructor='LinearSweepOptimWrapperConstructor', optimizer=dict(type='SGD', lr=1.0))
    )
    assert outputs_alike(model.backbone)
