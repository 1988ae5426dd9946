from math import log

import pytest
import torch
from torch.testing import assert_close

from poa_mm.models.losses import class_loss, patch_loss, same_view_loss

B, K = 3, 5


def cross_entropy(target, logit, temperature):
    """Of one row, number by number."""
    log_norm = torch.logsumexp(logit.double() / temperature, dim=0)
    return -sum(t * (x / temperature - log_norm) for t, x in zip(target.double(), logit.double()))


def targets_like_softmax(rows):
    return torch.softmax(torch.randn(rows, K), dim=1)


@pytest.mark.parametrize('num_local', [0, 1, 2, 8])
@pytest.mark.parametrize('temperature', [0.1, 1.0])
def test_class_loss_by_hand(num_local, temperature):
    targets, logits = targets_like_softmax(2 * B), torch.randn((2 + num_local) * B, K)
    sums = {'global': 0.0, 'local': 0.0}
    pairs = 0
    for teacher_crop in range(2):
        for student_crop in range(2 + num_local):
            if teacher_crop == student_crop:
                continue
            pairs += 1
            for image in range(B):
                value = cross_entropy(targets[teacher_crop * B + image], logits[student_crop * B + image], temperature)
                sums['global' if student_crop < 2 else 'local'] += value / B
    assert pairs == 2 + 2 * num_local
    on_global, on_local = class_loss(targets, logits, temperature)
    assert_close(on_global.item(), float(sums['global'] / pairs), rtol=1e-5, atol=1e-6)
    assert_close(on_local.item(), float(sums['local'] / pairs), rtol=1e-5, atol=1e-6)


def test_class_loss_crosses_the_global_crops():
    """Crop A's target is not compared with crop A's logits."""
    targets, logits = targets_like_softmax(2), torch.randn(2, K, requires_grad=True)
    class_loss(targets, logits).on_global.backward()
    changed = targets.clone()
    changed[0] = targets_like_softmax(1)
    other = logits.detach().requires_grad_()
    class_loss(changed, other).on_global.backward()
    assert_close(other.grad[0], logits.grad[0])
    assert not torch.allclose(other.grad[1], logits.grad[1])


def test_uniform_student_costs_log_k():
    on_global, on_local = class_loss(targets_like_softmax(2 * B), torch.zeros(4 * B, K))
    assert_close((on_global + on_local).item(), log(K))
    assert_close((on_global / on_local).item(), 0.5)  # 2 pairs against 4


@pytest.mark.parametrize('num_local', [0, 2])
@pytest.mark.parametrize('temperature', [0.1, 1.0])
def test_same_view_loss_by_hand(num_local, temperature):
    rows = (2 + num_local) * B
    teacher, student = torch.randn(rows, K), torch.randn(rows, K)
    values = [
        cross_entropy(torch.softmax(teacher[row].double() / temperature, 0), student[row], temperature)
        for row in range(rows)
    ]
    on_global, on_local = same_view_loss(teacher, student, 2 * B, temperature)
    assert_close(on_global.item(), float(sum(values[: 2 * B]) / (2 * B)), rtol=1e-5, atol=1e-6)
    expected = float(sum(values[2 * B :]) / (num_local * B)) if num_local else 0.0
    assert_close(on_local.item(), expected, rtol=1e-5, atol=1e-6)


def test_same_view_loss_teaches_the_student_only():
    teacher, student = torch.randn(4, K, requires_grad=True), torch.randn(4, K, requires_grad=True)
    sum(same_view_loss(teacher, student, 2)).backward()
    assert teacher.grad is None and student.grad.any()


def test_same_view_loss_is_least_for_equal_logits():
    logits = torch.randn(4, K)
    equal = logits.clone().requires_grad_()
    loss = sum(same_view_loss(logits, equal, 2))
    loss.backward()
    assert_close(equal.grad, torch.zeros_like(equal), rtol=0, atol=1e-6)
    assert loss < sum(same_view_loss(logits, logits + torch.randn(4, K), 2))


def test_patch_loss_by_hand():
    """Images with 3, 0, 1 and 2 masked patches: each masked image has the same say, the mean is over all four."""
    counts = [3, 0, 1, 2]
    targets, logits = targets_like_softmax(6), torch.randn(6, K)
    weights = torch.tensor([1 / 3] * 3 + [1.0] + [1 / 2] * 2)
    row, total = 0, 0.0
    for count in counts:
        values = [cross_entropy(targets[row + i], logits[row + i], 0.1) for i in range(count)]
        total += sum(values) / count if count else 0.0
        row += count
    assert_close(patch_loss(targets, logits, weights, 4, 0.1).item(), float(total / 4), rtol=1e-5, atol=1e-6)


def test_patch_loss_without_masked_patches_is_zero():
    logits = torch.randn(0, K, requires_grad=True)
    loss = patch_loss(torch.zeros(0, K), logits, torch.zeros(0), 4)
    loss.backward()
    assert loss.item() == 0


LOSSES = {
    'class': lambda targets, logits: sum(class_loss(targets, logits)),
    'same view': lambda targets, logits: sum(same_view_loss(targets, logits, 2)),
    'patch': lambda targets, logits: patch_loss(targets, logits, torch.ones(4), 2),
}


@pytest.mark.parametrize('loss', LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_low_precision_is_computed_in_float32(loss, dtype):
    targets, logits = targets_like_softmax(4), torch.randn(4, K).to(dtype)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        value = loss(targets, logits)
    assert value.dtype == torch.float32 and value.ndim == 0
    assert_close(value, loss(targets, logits.float()))


@pytest.mark.parametrize('loss', LOSSES.values(), ids=LOSSES)
def test_extreme_logits_stay_finite(loss):
    logits = (1e4 * torch.randn(4, K)).requires_grad_()
    value = loss(torch.softmax(1e4 * torch.randn(4, K), dim=1), logits)
    value.backward()
    assert value.isfinite() and logits.grad.isfinite().all()
