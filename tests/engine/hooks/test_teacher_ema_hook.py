import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from torch.testing import assert_close

from poa_mm.engine import POAOptimWrapper, TeacherEMAHook
from poa_mm.engine.hooks.teacher_ema_hook import cosine


def weights(modules):
    return [p.detach().clone() for module in modules.values() for p in module.parameters()]


class Record(Hook):
    """Student and teacher before each iteration (priority before the EMA hook) and after the run."""

    def __init__(self):
        self.teacher, self.student = [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.snapshot(runner)

    def after_train(self, runner):
        self.snapshot(runner)

    def snapshot(self, runner):
        teacher = runner.model.teacher
        self.teacher.append(weights({name: teacher[name] for name in teacher}))
        self.student.append(weights(runner.model.student))


def expected(old, student, momentum):
    return [momentum * t + (1 - momentum) * s for t, s in zip(old, student)]


def test_cosine_runs_from_first_to_last_value():
    assert cosine(0.992, 0.9999, 0, 100) == pytest.approx(0.992)
    assert cosine(0.992, 0.9999, 50, 100) == pytest.approx((0.992 + 0.9999) / 2)
    assert cosine(0.992, 0.9999, 100, 100) == pytest.approx(0.9999)
    assert cosine(0.992, 0.9999, 200, 100) == pytest.approx(0.9999)


def test_teacher_follows_the_formula(run_config, build_runner):
    run_config.custom_hooks[0] = dict(type='TeacherEMAHook', momentum=(0.5, 0.9), stretch=2.0)
    record = Record()
    build_runner(run_config, [record]).train()
    for i in range(4):
        momentum = cosine(0.5, 0.9, i, 8)
        assert_close(record.teacher[i + 1], expected(record.teacher[i], record.student[i + 1], momentum))
        assert any(not torch.equal(*pair) for pair in zip(record.student[i], record.student[i + 1]))


def test_no_update_without_an_optimizer_step(run_config, build_runner):
    run_config.optim_wrapper.accumulative_counts = 2
    run_config.custom_hooks[0].momentum = (0.5, 0.5)
    record = Record()
    build_runner(run_config, [record]).train()
    moved = [any(not torch.equal(*pair) for pair in zip(record.teacher[i], record.teacher[i + 1])) for i in range(4)]
    assert moved == [False, True, False, True]


def test_a_skipped_step_is_not_a_step():
    """A fused optimizer is called by the scaler in any case, with the flag as an attribute."""
    hook = TeacherEMAHook()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    for flag, moved in ((1.0, False), (0.0, True)):
        optimizer.found_inf = torch.tensor(flag)
        hook._note_step(optimizer, (), {})
        assert hook._student_moved(OptimWrapper(optimizer)) is moved
    assert not hook._student_moved(OptimWrapper(optimizer)), 'a step counts once'


def test_a_guarded_wrapper_is_believed(monkeypatch):
    hook = TeacherEMAHook()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    optimizer.found_inf = torch.tensor(1.0)
    monkeypatch.setattr(torch.Tensor, 'item', lambda tensor: pytest.fail('waits for the device'))
    wrapper = POAOptimWrapper(optimizer)
    for skipped in (True, False):
        wrapper.skipped = skipped
        hook._note_step(optimizer, (), {})
        assert hook._student_moved(wrapper) is not skipped


@pytest.mark.skipif(not hasattr(torch.amp, 'GradScaler'), reason='no gradient scaler for the CPU before torch 2.3')
def test_overflow_under_a_gradient_scaler_is_not_a_step():
    hook = TeacherEMAHook()
    param = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([param], lr=1.0)
    optimizer.register_step_post_hook(hook._note_step)
    scaler = torch.amp.GradScaler('cpu')
    for factor, stepped in ((float('inf'), False), (1.0, True)):
        optimizer.zero_grad()
        scaler.scale((factor * param).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert hook._student_moved(OptimWrapper(optimizer)) == stepped


@pytest.mark.parametrize('options', [dict(momentum=(0.9,)), dict(momentum=(0.9, 1.1)), dict(stretch=0.5)])
def test_bad_values_are_refused(options):
    with pytest.raises(ValueError, match=str(next(iter(options)))):
        TeacherEMAHook(**options)
