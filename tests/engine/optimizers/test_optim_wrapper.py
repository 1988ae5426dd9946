import pytest
import torch
from mmengine.logging import MessageHub
from torch import nn

from poa_mm.engine import POAAmpOptimWrapper, POAOptimWrapper


@pytest.fixture
def wrapper():
    backbone, head = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    groups = [dict(params=[backbone], module='backbone'), dict(params=[head], module='head')]
    return POAOptimWrapper(torch.optim.SGD(groups, lr=1.0), clip_grad=dict(max_norm=1.5))


def test_modules_are_clipped_separately(wrapper):
    backbone, head = (group['params'][0] for group in wrapper.optimizer.param_groups)
    (backbone @ torch.tensor([30.0, 40.0]) + head @ torch.tensor([0.6, 0.8])).backward()
    wrapper.step()
    torch.testing.assert_close(-backbone.detach(), torch.tensor([0.9, 1.2]))  # norm 50 to 1.5
    torch.testing.assert_close(-head.detach(), torch.tensor([0.6, 0.8]))  # norm 1 stays
    hub = MessageHub.get_current_instance()
    assert hub.get_scalar('train/grad_norm_backbone').current() == pytest.approx(50)
    assert hub.get_scalar('train/grad_norm_head').current() == pytest.approx(1)


def test_a_module_without_gradients_is_left_alone(wrapper):
    backbone, head = (group['params'][0] for group in wrapper.optimizer.param_groups)
    head.sum().backward()
    wrapper.step()
    assert backbone.abs().sum() == 0
    assert head.abs().sum() > 0


def test_mixed_precision_wrapper_clips_the_same_way():
    assert POAAmpOptimWrapper._clip_grad is POAOptimWrapper._clip_grad
