import warnings

import pytest
import torch
from mmengine.logging import MessageHub
from torch import nn

from poa_mm.engine import POAAmpOptimWrapper, POAOptimWrapper
from poa_mm.engine.optimizers.constructor import has_fused_adamw


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


def parameters(wrapper):
    return [group['params'][0] for group in wrapper.optimizer.param_groups]


@pytest.mark.parametrize('clip_grad', [None, dict(max_norm=1.5), dict(type='value', clip_value=1.0)])
@pytest.mark.parametrize('factor', [0.0, 1.0])
def test_no_step_on_a_gradient_that_is_not_finite(wrapper, clip_grad, factor):
    wrapper = POAOptimWrapper(wrapper.optimizer, clip_grad=clip_grad and dict(clip_grad))
    backbone, head = parameters(wrapper)
    wrapper.update_params((backbone.sqrt() * factor).sum() + head.sum())  # at 0, the slope is NaN or infinite
    assert wrapper.skipped
    assert wrapper.skipped_in_a_row == 1
    assert not backbone.any()
    assert not head.any()
    wrapper.update_params(backbone.sum() + head.sum())
    assert (wrapper.skipped, wrapper.skipped_in_a_row) == (False, 0)
    assert backbone.all()
    assert head.all()


def test_no_step_on_a_loss_that_is_not_finite_though_its_gradient_is(wrapper):
    backbone, head = parameters(wrapper)
    for value in (float('nan'), float('inf'), -float('inf')):
        wrapper.update_params((backbone + head).sum() + value)
    assert wrapper.skipped_in_a_row == 3
    assert not (backbone.any() or head.any())


def test_the_guard_does_not_touch_a_finite_loss(wrapper):
    loss = torch.tensor([1e-30, -3.3e38, 0.1], requires_grad=True)
    for value in loss:
        wrapper.backward(value)
    assert loss.grad.tolist() == [1.0] * 3


def test_accumulated_gradients_are_dropped_together(wrapper):
    wrapper = POAOptimWrapper(wrapper.optimizer, accumulative_counts=2)
    backbone, _ = parameters(wrapper)
    skipped = []
    for factor in (float('nan'), 1.0, 1.0, 1.0):
        wrapper.update_params(backbone.sum() * factor)
        skipped.append(wrapper.skipped)
    assert skipped == [False, True, False, False]
    assert backbone.tolist() == [-1.0] * 2


@pytest.fixture
def amp_wrapper(wrapper, monkeypatch):
    if not hasattr(torch.amp, 'GradScaler'):
        pytest.skip('no gradient scaler for the CPU before torch 2.3')
    monkeypatch.setattr('mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available', lambda: True)

    def make(**options):
        amp_wrapper = POAAmpOptimWrapper(optimizer=wrapper.optimizer, clip_grad=dict(max_norm=1.5), **options)
        amp_wrapper.loss_scaler = torch.amp.GradScaler('cpu', init_scale=4.0)
        return amp_wrapper

    return make


def test_a_scaler_looking_for_its_scale_is_left_alone(amp_wrapper):
    wrapper = amp_wrapper()
    backbone, head = parameters(wrapper)
    found = []
    for factor in [float('inf')] * 4 + [1.0]:
        wrapper.update_params(backbone.sum() * factor + head.sum())
        found.append((wrapper.loss_scaler.get_scale(), wrapper.skipped, wrapper.skipped_in_a_row))
    # At a scale of 1 there is no overflow of the scaler's making.
    assert found == [(2.0, True, 0), (1.0, True, 0), (0.5, True, 1), (0.25, True, 2), (0.25, False, 0)]
    assert backbone.all()


def test_nothing_is_looked_for_with_a_fixed_scale(amp_wrapper):
    wrapper = amp_wrapper(loss_scale=4.0)
    wrapper.update_params(parameters(wrapper)[0].sum() * float('nan'))
    assert wrapper.skipped_in_a_row == 1
    assert wrapper.loss_scaler.get_scale() == 4.0


@pytest.mark.parametrize('wrapped', [False, True])
def test_the_model_knows_the_scale(amp_wrapper, wrapped):
    """For gradients that are computed during the forward pass."""
    model = nn.Linear(2, 2)
    model.loss_scale = 1.0
    with amp_wrapper().optim_context(nn.DataParallel(model) if wrapped else model):
        assert model.loss_scale.item() == 4
        assert model(torch.ones(1, 2)).dtype == torch.bfloat16


def test_bfloat16_needs_no_scaler(wrapper, monkeypatch):
    monkeypatch.setattr('mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available', lambda: True)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        bfloat16 = POAAmpOptimWrapper(optimizer=wrapper.optimizer, dtype='bfloat16')
        chosen = POAAmpOptimWrapper(optimizer=wrapper.optimizer, dtype='bfloat16', loss_scale=dict(enabled=False))
    assert not bfloat16.loss_scaler.is_enabled() and not chosen.loss_scaler.is_enabled()
    backbone, head = parameters(bfloat16)
    bfloat16.update_params(backbone.sum() * float('nan') + head.sum())
    assert (bfloat16.skipped, bfloat16.skipped_in_a_row) == (True, 1)
    assert not (backbone.any() or head.any())
    bfloat16.update_params(backbone.sum() + head.sum())
    assert backbone.all() and head.all()
    wrapper.load_state_dict(bfloat16.state_dict())
    bfloat16.load_state_dict(wrapper.state_dict())


def test_a_run_with_a_scaler_goes_on_from_one_without(amp_wrapper):
    wrapper = amp_wrapper()
    wrapper.load_state_dict({**wrapper.optimizer.state_dict(), 'loss_scaler': {}})
    assert wrapper.loss_scaler.get_scale() == 4.0


def adamw(fused, start):
    param = nn.Parameter(start.clone())
    return POAOptimWrapper(torch.optim.AdamW([dict(params=[param], lr=0.1, module='head')], fused=fused)), param


@pytest.mark.parametrize('fused', [True, False])
def test_a_fused_step_goes_on_as_one_that_is_not_and_back(fused):
    if not has_fused_adamw(torch.device('cpu')):
        pytest.skip('this torch has no fused AdamW for CPUs')
    start, grads = torch.randn(20), torch.randn(4, 20)
    straight, expected = adamw(None, start)
    first, param = adamw(fused, start)
    for index, grad in enumerate(grads):
        if index == 2:
            state, (first, param) = first.state_dict(), adamw(not fused, param.detach())
            first.load_state_dict(state)
            assert first.optimizer.param_groups[0]['fused'] is not fused
            assert first.optimizer.param_groups[0]['module'] == 'head'
        for wrapper, target in ((straight, expected), (first, param)):
            target.grad = grad.clone()
            wrapper.step()
    torch.testing.assert_close(param, expected)


def test_the_optimizer_of_another_network_is_refused(wrapper):
    state = wrapper.state_dict()
    state['param_groups'] = state['param_groups'] * 2
    with pytest.raises(ValueError, match='different number of parameter groups'):
        wrapper.load_state_dict(state)
