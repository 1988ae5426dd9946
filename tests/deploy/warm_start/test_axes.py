"""Units change places, and the network at full size stays what it is."""

import pytest
import torch
from torch.testing import assert_close

from poa_mm.deploy.warm_start.axes import axes_of, feature_axis, order_of, reorder
from poa_mm.deploy.warm_start.ordering import change_of_features

NETWORKS = (
    *('vit', 'vit of other options', 'vit of several patch sizes', 'swin', 'swin of other options'),
    *('resnet', 'resnet of other options'),
)


@pytest.fixture(params=NETWORKS)
def network(request, network_of):
    return network_of(request.param)


def shuffled(axes):
    return {axis.name: order_of(torch.rand(axis.units), axis.groups) for axis in axes}


def test_the_whole_network_stays(network):
    axes = axes_of(network)
    orders = shuffled(axes)
    assert sum(bool((order != torch.arange(len(order))).any()) for order in orders.values()) == len(axes)
    weights = reorder(network.state_dict(), axes, orders)
    channels = feature_axis(network)
    order = None if channels is None else orders[channels]
    assert change_of_features(network, weights, order) <= 1e-9
    if order is not None:
        assert change_of_features(network, weights, None) > 0.1  # the features do come in another order


@torch.no_grad()
def test_smaller_subnets_are_others(network):
    axes = axes_of(network)
    images = torch.randn(2, 3, *network.img_size).double()
    before = network.extract_features(images, network.space.smallest)
    network.load_state_dict(reorder(network.state_dict(), axes, shuffled(axes)))
    after = network.extract_features(images, network.space.smallest)
    assert (before.cls.sort(dim=1)[0] - after.cls.sort(dim=1)[0]).abs().max() > 1e-3


def test_and_back_again(network):
    axes = axes_of(network)
    orders = shuffled(axes)
    there = reorder(network.state_dict(), axes, orders)
    back = reorder(there, axes, {name: order.argsort() for name, order in orders.items()})
    for name, value in network.state_dict().items():
        assert torch.equal(back[name], value), name


@pytest.mark.parametrize('kind', ['vit', 'swin', 'resnet'])
@torch.no_grad()
def test_a_subnet_keeps_the_first_units(kind, network_of):
    """Every unit beyond the smallest width is without effect on the smallest subnet, and on it alone."""
    network = network_of(kind)
    images = torch.randn(2, 3, *network.img_size).double()
    space = network.space
    before = {subnet: network.extract_features(images, subnet).cls for subnet in (space.smallest, space.largest)}
    weights = network.state_dict()
    for axis in axes_of(network):
        kept = axis.units * space.smallest.width // space.largest.width
        for part in axis.parts:
            if part.gives:
                value = weights[part.name].movedim(part.dim, 0).unflatten(0, (part.copies, axis.units, part.size))
                value[:, kept:] += 1
    assert_close(network.extract_features(images, space.smallest).cls, before[space.smallest], rtol=0, atol=1e-12)
    assert (network.extract_features(images).cls - before[space.largest]).abs().max() > 1e-2


def test_order():
    importance = torch.tensor([1.0, 5.0, 3.0, 4.0, 6.0, 0.0])
    assert order_of(importance).tolist() == [4, 1, 3, 2, 0, 5]
    # Sums of groups of two: 6, 7, 6. Equal ones stay.
    assert order_of(importance, groups=3).tolist() == [3, 2, 1, 0, 4, 5]
    assert order_of(torch.ones(4)).tolist() == [0, 1, 2, 3]


def test_other_networks_are_refused():
    with pytest.raises(TypeError, match='Linear is no elastic backbone'):
        axes_of(torch.nn.Linear(1, 1))
