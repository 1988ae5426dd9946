"""What importance measures: how features change without a unit."""

import pytest
import torch
from torch.nn import functional as F

from poa_mm.deploy.warm_start.axes import axes_of, split
from poa_mm.deploy.warm_start.importance import magnitude, taylor


@pytest.fixture
def network(request, network_of):
    return network_of(request.param)


def scaled(network, axis, unit, factor):
    """What a unit gives, multiplied; in place."""
    for part in axis.parts:
        if part.gives:
            value = dict(network.named_parameters())[part.name].detach()
            rows = value.movedim(part.dim, 0).unflatten(0, (part.copies, axis.units, part.size))
            rows[:, unit] *= factor


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ('swin', 'resnet')]


@pytest.mark.parametrize('network', ['vit', *SLOW], indirect=True)
def test_it_is_the_slope_of_the_features(network):
    """Of one unit of two axes, over many directions: the squared norm of a difference quotient."""
    image = torch.randn(1, 3, *network.img_size).double()
    axes, repeats, step = axes_of(network), 150, 1e-5
    chosen = [axes[0], axes[-1]]
    found = taylor(network, chosen, [image] * repeats)
    for axis in chosen:
        unit = int(found[axis.name].argmax())
        sides = []
        for factor in (1 + step, (1 - step) / (1 + step)):
            scaled(network, axis, unit, factor)
            with torch.no_grad():
                features = network.extract_features(image)
            cls, patch = F.normalize(features.cls, dim=-1), F.normalize(features.patch[0], dim=-1)
            sides.append(torch.cat([cls.flatten(), patch.flatten() / len(patch) ** 0.5]))
        scaled(network, axis, unit, 1 / (1 - step))
        expected = ((sides[0] - sides[1]) / (2 * step)).square().sum().item()
        assert found[axis.name][unit].item() / repeats == pytest.approx(expected, rel=0.4)


@pytest.mark.parametrize('network', ['vit', 'swin', 'resnet'], indirect=True)
def test_units_that_give_nothing_come_last(network):
    axes = axes_of(network)
    for axis in axes:
        if 'channels' not in axis.name or axis.groups > 1:  # residual channels feed norms all the same
            scaled(network, axis, 0, 0)
    found = taylor(network, axes, [torch.randn(1, 3, *network.img_size).double()])
    for axis in axes:
        assert found[axis.name].shape == (axis.units,)
        if 'channels' not in axis.name or axis.groups > 1:
            assert found[axis.name][0] == 0
            assert found[axis.name].max() > 0


@pytest.mark.parametrize('network', ['vit', 'swin', 'resnet'], indirect=True)
def test_magnitude_is_the_sum_of_squares(network):
    axes = axes_of(network)
    found = magnitude(network, axes)
    params = dict(network.named_parameters())
    for axis in axes:
        expected = [
            sum(split(params[part.name], part, axis.units)[unit].square().sum() for part in axis.parts)
            for unit in (0, axis.units - 1)
        ]
        torch.testing.assert_close(found[axis.name][[0, -1]], torch.stack(expected).detach())


def test_gradients_of_the_network_are_left_alone(network_of):
    network = network_of('vit')
    taylor(network, axes_of(network), [torch.randn(1, 3, 32, 32).double()])
    assert all(param.grad is None for param in network.parameters())
