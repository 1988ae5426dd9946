"""A batch in pieces gives what it gives as a whole."""

import pytest
import torch
from mmpretrain.structures import DataSample
from torch.testing import assert_close

from poa_mm.models import POA

VIT = dict(
    type='ElasticVisionTransformer',
    arch=dict(embed_dims=32, num_layers=3, num_heads=4, feedforward_channels=64),
    widths=[16, 24, 32],
    depths=[2, 3],
    img_size=32,
    patch_size=8,
    layer_scale_init_value=0.5,
)
HEAD = dict(type='MultiPrototypeHead', num_prototypes=[16, 32], hidden_channels=32, bottleneck_channels=16)


def make_data(num_images=6, num_local=2, size=32, grid=(4, 4)):
    """Views, and masks that differ in number; some crops have none."""
    generator = torch.Generator().manual_seed(1)
    sizes = [size] * 2 + [size // 2] * num_local
    inputs = [torch.randn(num_images, 3, side, side, generator=generator) for side in sizes]
    share = torch.linspace(0, 0.7, num_images).view(-1, 1, 1, 1)
    masks = torch.rand(num_images, 2, *grid, generator=generator) < share
    return dict(inputs=inputs, data_samples=[DataSample(mask=mask) for mask in masks])


@pytest.fixture(scope='module')
def step(randomise):
    """What ``steps`` steps give: the losses of the last one, and all gradients, added up."""

    def run(data, micro_batches, steps=1, autocast=None, prepare=None, backbone=None, **options):
        torch.manual_seed(0)
        backbone = VIT | (backbone or {}) if backbone is None or 'type' not in backbone else backbone
        model = randomise(POA(backbone=backbone, head=HEAD, micro_batches=micro_batches, **options))
        model.train()
        if prepare:
            prepare(model)
        for _ in range(steps):
            with torch.autocast('cpu', dtype=autocast, enabled=autocast is not None):
                losses = model.loss(**data)
            losses['loss'].backward()
        grads = {name: param.grad for name, param in model.named_parameters() if param.grad is not None}
        return losses, grads, model

    return run


def assert_same(found, expected, rtol=1e-5):
    """Losses one by one, gradients by the norm of each parameter's."""
    (losses, grads, model), (expected_losses, expected_grads, expected_model) = found, expected
    assert losses.keys() == expected_losses.keys()
    for name, value in expected_losses.items():
        assert_close(losses[name], value, rtol=rtol, atol=rtol, msg=lambda text, name=name: f'{name}: {text}')
    assert grads.keys() == expected_grads.keys()
    total = torch.stack([grad.norm() for grad in expected_grads.values()]).norm()
    for name, expected in expected_grads.items():
        assert (grads[name] - expected).norm() <= rtol * (expected.norm() + 1e-3 * total), name
    for (name, buffer), expected in zip(model.named_buffers(), expected_model.buffers()):
        assert_close(buffer, expected, rtol=rtol, atol=rtol, msg=lambda text, name=name: f'{name}: {text}')


@pytest.mark.parametrize('micro_batches', [2, 3, 4, 6, 10])
def test_any_number_of_pieces(step, micro_batches):
    """Of 6 images: 4 pieces are unequal, 10 are as many as there are images."""
    data = make_data()
    assert_same(step(data, micro_batches), step(data, 1))


OPTIONS = {
    'mean centring': dict(centering=dict(type='MeanCentering', momentum=0.5), steps=3),
    'without L_IS': dict(weight_is=0),
    'same view alone': dict(weight_is=0, weight_es1=0),
    'without L_ES2': dict(weight_es2=0),
    'intact student alone': dict(weight_es1=0, weight_es2=0),
    'without patch loss': dict(patch_weight=0),
    'without KoLeo': dict(koleo_weight=0),
    'stochastic depth': dict(backbone=dict(drop_path_rate=0.4), steps=2),
    'stochastic depth, without L_IS': dict(backbone=dict(drop_path_rate=0.4), weight_is=0),
    'checkpointed': dict(backbone=dict(drop_path_rate=0.4, with_cp=True)),
    'three iterations': dict(centering=dict(type='SinkhornKnopp', iterations=1)),
}


@pytest.mark.parametrize('options', OPTIONS.values(), ids=OPTIONS)
def test_with(step, options):
    data = make_data()
    assert_same(step(data, 4, **options), step(data, 1, **options))
