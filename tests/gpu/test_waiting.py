"""In a step, the host waits for the device once: for the norms that it logs."""

from contextlib import contextmanager

import pytest
import torch
from waiting import Waiting

from poa_mm.elastic import Subnet
from poa_mm.engine import TeacherEMAHook
from poa_mm.engine.optimizers import GuardedOptimWrapper

HOST = 'models/selfsup/batch.py'
SUBNETS = dict(vit=Subnet(48, 3), swin=Subnet(24, 3), resnet=Subnet(8, (3, 3, 6, 3)))


@pytest.fixture
def watch(monkeypatch, device):
    """A context in which waiting is an error, but for the one place where it is meant to be; counts that one."""
    read, reads = GuardedOptimWrapper._read, []

    @contextmanager
    def on_gpu():
        torch.cuda.set_sync_debug_mode('error')
        try:
            yield reads
        finally:
            torch.cuda.set_sync_debug_mode('default')

    def read_on_gpu(self, values):
        reads.append(1)
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode('default')
        found = read(self, values)
        torch.cuda.set_sync_debug_mode(mode)
        return found

    waiting = Waiting()

    @contextmanager
    def on_cpu():
        with waiting:
            yield reads
        # Masks are looked at where they are, on the host: tests/models/selfsup/test_batch.py.
        found = [where for where in waiting.found if HOST not in where]
        assert len(found) < len(waiting.found), 'the watch sees nothing'
        assert not found, '\n'.join(found)

    def read_on_cpu(self, values):
        reads.append(1)
        before = len(waiting.found)
        found = read(self, values)
        del waiting.found[before:]
        return found

    monkeypatch.setattr(GuardedOptimWrapper, '_read', read_on_gpu if device.type == 'cuda' else read_on_cpu)
    return on_gpu if device.type == 'cuda' else on_cpu


OPTIONS = {
    'plain': {},
    'checkpointed': dict(backbone=dict(with_cp=True)),
    'mean centring': dict(centering=dict(type='MeanCentering')),
    'no patch loss': dict(patch_weight=0),
    'the intact student teaches only': dict(weight_is=0),
}
CASES = [*[(family, 'plain') for family in SUBNETS], *[('vit', name) for name in OPTIONS if name != 'plain']]


@pytest.mark.parametrize(('family', 'options'), CASES)
@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_a_step_waits_once(make_poa, raw_batch, amp, one_subnet, watch, device, family, options, dtype):
    options = dict(OPTIONS[options])
    drop = dict(drop_path_rate=0.3) if family != 'resnet' else {}
    model = make_poa(device, family, drop | options.pop('backbone', {}), **options)
    wrapper, batch = amp(model, dtype), raw_batch(model)
    follow, step = follower(model, wrapper), stepper(model, wrapper, one_subnet(model, SUBNETS[family]))
    step(batch)  # what happens at the first step only: handles, workspaces, the optimizer's memory
    follow()
    with watch() as reads:
        for _ in range(2):
            step(batch)
            follow()
    assert len(reads) == 2 + 1  # the first step's was not watched
    assert not wrapper.skipped


def stepper(model, wrapper, _):
    def step(batch):
        data = model.data_preprocessor(batch, True)
        with wrapper.optim_context(model):
            losses = model.loss(**data)
        wrapper.update_params(losses['loss'])

    return step


def follower(model, wrapper):
    from types import SimpleNamespace

    from mmengine.logging import MessageHub

    hook = TeacherEMAHook()
    hub = MessageHub.get_current_instance()
    runner = SimpleNamespace(model=model, optim_wrapper=wrapper, iter=0, max_iters=1, message_hub=hub)
    hook.before_train(runner)
    return lambda: hook.after_train_iter(runner, 0)


# --- the watch itself ---


@pytest.mark.parametrize(
    'wait',
    [
        lambda x: x.sum().item(),
        lambda x: bool(x[0] > 0),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x[[2, 1, 0]],
        lambda x: x.new_tensor([1.0]),
        lambda x: x.unique(),
        lambda x: x.masked_select(x > 0),
        lambda x: x.repeat_interleave(x.abs().long()),
        lambda x: torch.tensor([1.0]),
        lambda x: x.tolist(),
    ],
)
def test_what_waits_is_found(wait):
    with Waiting() as waiting:
        wait(torch.randn(5))
    assert waiting.found


def test_what_does_not_wait_is_not():
    x, order = torch.randn(5), torch.randperm(5)
    with Waiting() as waiting:
        x[order], x[1:], x.new_full((2,), 1.0), torch.where(x > 0, x, 0), x.masked_fill(x > 0, 1), x.topk(2)
    assert not waiting.found
