import gc
import weakref

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from poa_mm.models.selfsup.early_backward import EarlyBackward


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 1))


def early_backward(loss, params, loss_scale=1.0):
    early = EarlyBackward(params, loss_scale)
    early.add(loss)
    return early.total()


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


def test_a_loss_without_gradient_adds_its_value(net):
    early = EarlyBackward(net.parameters())
    with torch.no_grad():
        early.add(losses(net)[0])
    assert not early.total().requires_grad
    first, second = losses(net)
    early.add(second)
    total = early.total()
    assert total == first.detach() + second.detach()
    total.backward()
    found = [param.grad for param in net[0].parameters()]
    assert_close(found, list(torch.autograd.grad(losses(net)[1], net[0].parameters())))


def test_no_losses_are_zero(net):
    assert EarlyBackward(net.parameters()).total() == 0


@pytest.mark.parametrize('order', [(0, 1, 0), (1, 0, 1)])  # the second loss does not reach the last layer
def test_sum_of_several(net, order):
    expected = torch.autograd.grad(2 * sum(losses(net)[index] for index in order), list(net.parameters()))
    early = EarlyBackward(net.parameters())
    for index in order:
        early.add(losses(net)[index])
    total = early.total()
    assert_close(total, sum(losses(net)[index] for index in order))
    (2 * total).backward()
    assert_close([param.grad for param in net.parameters()], list(expected))


def test_one_tensor_for_two_parameters():
    """Autograd gives the terms of a sum the same gradient, and those of a concatenation views of one."""
    params = [nn.Parameter(torch.ones(2)) for _ in range(4)]
    early = EarlyBackward(params)
    for _ in range(2):
        summed = params[0] + params[1]
        joined = torch.cat(params[2:])
        early.add((summed * torch.tensor([3.0, 4.0])).sum() + (joined * torch.arange(4.0)).sum())
    (5 * early.total()).backward()
    assert [param.grad.tolist() for param in params] == [[30, 40], [30, 40], [0, 10], [20, 30]]
