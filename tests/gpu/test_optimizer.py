"""Mixed precision with a gradient scaler, through gradients that are taken early."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MessageHub

from poa_mm.elastic import Subnet
from poa_mm.engine import TeacherEMAHook
from poa_mm.engine.optimizers.constructor import has_fused_adamw

SUBNET = Subnet(32, 2)


def teacher_follows(model, wrapper):
    """The hook, as a function to be called after each step."""
    hook = TeacherEMAHook(momentum=(0.9, 0.9))
    runner = SimpleNamespace(
        model=model, optim_wrapper=wrapper, iter=0, max_iters=1, message_hub=MessageHub.get_current_instance()
    )
    hook.before_train(runner)
    return lambda: hook.after_train_iter(runner, 0)


def state_of(model):
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def same(first, second):
    return {name for name in first if not torch.equal(first[name], second[name])} == set()


def test_an_overflow_skips_the_step(make_poa, raw_batch, amp, train_step, one_subnet, device):
    model = one_subnet(make_poa(device), SUBNET)
    wrapper = amp(model, init_scale=2.0**127)  # whatever the gradients: they overflow
    follow, before = teacher_follows(model, wrapper), state_of(model)
    train_step(model, wrapper, raw_batch(model))
    follow()
    assert wrapper.skipped and wrapper.skipped_in_a_row == 0, 'the scaler is looking for its scale'
    assert wrapper.loss_scaler.get_scale() == 2.0**126
    assert same(before, state_of(model))
    assert not any(state['step'].item() for state in wrapper.optimizer.state.values() if 'step' in state)


def test_steps_after_an_overflow(make_poa, raw_batch, amp, train_step, one_subnet, device):
    model = one_subnet(make_poa(device), SUBNET)
    wrapper = amp(model, init_scale=2.0**127)
    train_step(model, wrapper, raw_batch(model))
    wrapper.loss_scaler.update(2.0**10)
    follow, before = teacher_follows(model, wrapper), state_of(model)
    train_step(model, wrapper, raw_batch(model))
    follow()
    after = state_of(model)
    assert not wrapper.skipped
    for part in ('backbone.', 'head.', 'teacher.backbone.', 'teacher.head.'):
        assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith(part)), part


def test_nan_skips_the_step(make_poa, raw_batch, amp, train_step, one_subnet, device):
    for dtype in ('float16', 'bfloat16'):
        model = one_subnet(make_poa(device), SUBNET)
        wrapper = amp(model, dtype)
        follow, before, batch = teacher_follows(model, wrapper), state_of(model), raw_batch(model)
        batch['inputs'] = [view.float() for view in batch['inputs']]
        batch['inputs'][0][0] = float('nan')
        train_step(model, wrapper, batch)
        follow()
        assert wrapper.skipped
        assert same(before, state_of(model))
        train_step(model, wrapper, raw_batch(model))
        assert not wrapper.skipped


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_twenty_steps_go_down(make_poa, raw_batch, amp, train_step, one_subnet, device, dtype):
    model = make_poa(device)
    model.init_weights()
    one_subnet(model, SUBNET)
    wrapper, batch = amp(model, dtype), raw_batch(make_poa('cpu'))
    follow, losses = teacher_follows(model, wrapper), []
    for _ in range(20):
        losses.append(train_step(model, wrapper, batch)['loss'].item())
        follow()
        assert not wrapper.skipped
    assert all(value < float('inf') for value in losses)
    assert sum(losses[-5:]) < 0.97 * sum(losses[:5]), losses


def test_the_scale_does_not_show_in_the_gradients(make_poa, raw_batch, amp, one_subnet, device):
    """Those that are taken early and those of the last pass are scaled alike."""
    found = []
    for scale in (2.0**4, 2.0**12):
        model = one_subnet(make_poa(device), SUBNET)
        wrapper, data = amp(model, init_scale=scale), model.data_preprocessor(raw_batch(model), True)
        torch.manual_seed(0)
        with wrapper.optim_context(model):
            loss = model.loss(**data)['loss']
        wrapper.backward(loss)
        wrapper.loss_scaler.unscale_(wrapper.optimizer)
        found.append({name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None})
    for name, expected in found[1].items():
        difference, largest = (value.abs().max().item() for value in (found[0][name] - expected, expected))
        assert difference <= 0.02 * largest + 1e-7, name


@pytest.mark.gpu
def test_adamw_is_fused_on_the_gpu(make_poa, amp):
    assert has_fused_adamw(torch.device('cuda'))
    assert amp(make_poa('cuda')).optimizer.defaults['fused']
