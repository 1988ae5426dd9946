import gc
import weakref

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from poa_mm.models.selfsup.early_backward import early_backward


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 1))


def losses(net):
    x = torch.linspace(-1, 1, 20).view(5, 4)
    return net(x).pow(2).mean(), net[:2](x).mean()


@pytest.mark.parametrize('loss_scale', [1.0, 1024.0])
def test_same_gradient_as_the_loss_itself(net, loss_scale):
    params = list(net.parameters())
    first, second = losses(net)
    expected = torch.autograd.grad(3 * (first + 2 * second), params, allow_unused=True)
    first, second = losses(net)
    early = early_backward(first, params, loss_scale)
    assert early.item() == first.item()
    (3 * (early + 2 * second)).backward()
    assert_close([param.grad for param in params], list(expected))


def test_the_graph_is_gone_at_once(net):
    hidden = net[1](net[0](torch.ones(1, 4)))
    loss = net[2](hidden).sum()
    graph = weakref.ref(hidden)
    early = early_backward(loss, net.parameters())
    del hidden, loss
    gc.collect()
    assert graph() is None
    early.backward()
    assert all(param.grad.any() for param in net[2].parameters())


def test_parameters_out_of_reach_and_frozen_ones(net):
    net[2].bias.requires_grad_(False)
    unused = nn.Parameter(torch.ones(2))
    early_backward(losses(net)[1], [*net.parameters(), unused]).backward()
    assert net[0].weight.grad.any()
    assert net[2].weight.grad is None and net[2].bias.grad is None and unused.grad is None


def test_every_parameter_tells_that_it_is_done(net):
    """Distributed training waits for each parameter's hook, those that this loss does not reach included."""
    done = []
    accumulators = {name: param.expand_as(param).grad_fn.next_functions[0][0] for name, param in net.named_parameters()}
    for name, accumulator in accumulators.items():
        accumulator.register_hook(lambda *_, name=name: done.append(name))
    early_backward(losses(net)[1], net.parameters()).backward()
    assert sorted(done) == sorted(accumulators)


def test_accumulates(net):
    for _ in range(2):
        early_backward(losses(net)[0], net.parameters()).backward()
    twice = [param.grad.clone() for param in net.parameters()]
    net.zero_grad()
    losses(net)[0].backward()
    assert_close(twice, [2 * param.grad for param in net.parameters()])


def test_a_loss_without_gradient_passes(net):
    with torch.no_grad():
        loss = losses(net)[0]
    assert early_backward(loss, net.parameters()) is loss
