import sys

import pytest
import torch
from torch.testing import assert_close

from poa_mm.models.losses import Targets, class_loss, patch_loss, prototype_loss, same_view_loss

IMAGES, LOCAL, MASKED, CHANNELS, PROTOTYPES = 3, 2, 5, 8, 12
NUM_CLS = (2 + LOCAL) * IMAGES
TEMPERATURE = 0.1
SCALES = dict(cross=0.2, patch=0.3, same=0.5)


def in_blocks(monkeypatch, logits):
    """Have blocks hold so many logits, whatever number of prototypes that is."""
    module = sys.modules[prototype_loss.__module__]
    monkeypatch.setattr(module, 'BLOCK', logits)
    monkeypatch.setattr(module, 'PARTS', 1)


def distributions(rows, generator):
    return torch.randn(rows, PROTOTYPES, generator=generator).mul(3).softmax(dim=1)


@pytest.fixture
def case():
    """Embeddings and prototypes, and targets of a class, a patch and a same-view loss in the form of both ways."""
    g = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(NUM_CLS + MASKED, CHANNELS, generator=g), dim=1)
    prototypes = torch.randn(PROTOTYPES, CHANNELS, generator=g)
    cls, patch, same = (distributions(rows, g) for rows in (2 * IMAGES, MASKED, NUM_CLS))
    weights = torch.rand(MASKED, generator=g)
    return embeddings.requires_grad_(), prototypes.requires_grad_(), cls, patch, same, weights


def plain(embeddings, prototypes, cls, patch, same, weights):
    """The losses on logits; ``same`` is a distribution, so its logarithm stands for the intact student's logits."""
    logits = embeddings @ prototypes.T
    losses = dict(
        cross=sum(class_loss(cls, logits[:NUM_CLS], TEMPERATURE)),
        patch=patch_loss(patch, logits[NUM_CLS:], weights, 2 * IMAGES, TEMPERATURE),
        same=sum(same_view_loss(TEMPERATURE * same.log(), logits[:NUM_CLS], 2 * IMAGES, TEMPERATURE)),
    )
    return sum(SCALES[name] * loss for name, loss in losses.items()), losses


def fused(embeddings, prototypes, cls, patch, same, weights, chunk, prototypes_grad=None):
    pairs = IMAGES * (2 + 2 * LOCAL)
    probs = torch.cat([cls.roll(IMAGES, 0), (cls[:IMAGES] + cls[IMAGES:]).repeat(LOCAL, 1)])
    shares = torch.tensor([1 / (2 * IMAGES)] * 2 * IMAGES + [1 / (LOCAL * IMAGES)] * LOCAL * IMAGES)
    targets = dict(
        cross=Targets(probs, torch.full((NUM_CLS,), 1 / pairs), SCALES['cross']),
        patch=Targets(patch, weights / (2 * IMAGES), SCALES['patch'], start=NUM_CLS),
        same=Targets(same, shares, SCALES['same']),
    )
    total, rows, _ = prototype_loss(embeddings, prototypes, list(targets.values()), TEMPERATURE, chunk, prototypes_grad)
    return total, {name: row.sum() for name, row in zip(targets, rows)}


@pytest.mark.parametrize('prototypes_at_a_time', [1, 5, PROTOTYPES])
@pytest.mark.parametrize('rows_at_a_time', [1, 4, 5, 100])
def test_equals_the_plain_losses(case, rows_at_a_time, prototypes_at_a_time, monkeypatch):
    rows = -(-min(rows_at_a_time, NUM_CLS + MASKED) // 8) * 8  # as prototype_logits pads them
    in_blocks(monkeypatch, prototypes_at_a_time * rows)
    expected_total, expected = plain(*case)
    total, losses = fused(*case, chunk=rows_at_a_time * PROTOTYPES)
    assert_close(total, expected_total, rtol=1e-6, atol=0)
    for name in expected:
        assert_close(losses[name], expected[name].detach(), rtol=1e-6, atol=0)
        assert not losses[name].requires_grad
    expected_grads, grads = (torch.autograd.grad(3 * value, case[:2]) for value in (expected_total, total))
    for grad, expected_grad in zip(grads, expected_grads):
        assert_close(grad, expected_grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('scale', [1.0, 1000.0])
@pytest.mark.parametrize('keep', [0, 3, NUM_CLS + MASKED])
def test_keeps_the_softmax_of_leading_rows(case, keep, scale, monkeypatch):
    """Logits of a thousand too, whose exponentials no float32 holds."""
    in_blocks(monkeypatch, 5 * 8)
    embeddings, prototypes, _, patch, *_ = case
    targets = Targets(patch, torch.ones(MASKED), 1.0)
    total, _, probs = prototype_loss(
        embeddings, scale * prototypes, [targets], TEMPERATURE, chunk=5 * PROTOTYPES, keep=keep
    )
    expected = (scale * embeddings @ prototypes.T / TEMPERATURE).softmax(dim=1)[:keep]
    assert_close(probs, expected.detach(), rtol=1e-3 if scale > 1 else 1e-5, atol=1e-6)
    assert total.isfinite() and total.requires_grad and not probs.requires_grad


@pytest.mark.parametrize('keep', [-1, NUM_CLS + MASKED + 1])
def test_no_more_rows_are_kept_than_there_are(case, keep):
    with pytest.raises(ValueError, match=f'keep {keep} is not in 0 .. {NUM_CLS + MASKED}'):
        prototype_loss(*case[:2], [], TEMPERATURE, keep=keep)


def test_fewer_logits_than_a_row_still_work(case):
    assert_close(fused(*case, chunk=1), fused(*case, chunk=10**6))


@pytest.mark.parametrize('frozen', [0, 1])
def test_no_gradient_for_what_is_frozen(case, frozen):
    case[frozen].requires_grad_(False)
    fused(*case, chunk=50)[0].backward()
    plain_total, _ = plain(*case)
    grad = case[1 - frozen].grad.clone()
    case[1 - frozen].grad = None
    plain_total.backward()
    assert case[frozen].grad is None
    assert_close(grad, case[1 - frozen].grad, rtol=1e-5, atol=1e-6)


def test_gradients_of_prototypes_add_up_in_one_place(case):
    embeddings, prototypes = case[:2]
    expected, expected_embeddings = torch.autograd.grad(plain(*case)[0], (prototypes, embeddings))
    grad = torch.ones_like(prototypes)
    for _ in range(2):
        total, _ = fused(*case, chunk=50, prototypes_grad=grad)
    total.backward()
    assert_close(grad, 1 + 2 * expected, rtol=1e-5, atol=1e-6)
    assert_close(embeddings.grad, expected_embeddings, rtol=1e-5, atol=1e-6)
    assert prototypes.grad is None


def test_without_gradient(case):
    with torch.no_grad():
        total, _ = fused(*case, chunk=50)
    assert not total.requires_grad
    assert_close(total, plain(*case)[0].detach())


def test_rows_without_a_target_have_no_gradient(case):
    embeddings, prototypes, _, patch, *_ = case
    targets = Targets(patch, torch.ones(MASKED), 1.0, start=2)
    total, (rows,), _ = prototype_loss(embeddings, prototypes, [targets], TEMPERATURE, chunk=3 * PROTOTYPES)
    total.backward()
    taught = embeddings.grad.any(dim=1)
    assert taught.tolist() == [2 <= row < 2 + MASKED for row in range(len(embeddings))]
    assert_close(total.detach(), rows.sum())


def test_no_targets_and_no_rows(case):
    embeddings, prototypes, *_ = case
    nothing, rows, _ = prototype_loss(embeddings, prototypes, [], TEMPERATURE)
    assert nothing.item() == 0 and rows == []
    nobody = Targets(torch.zeros(0, PROTOTYPES), torch.zeros(0), 1.0)
    total, (rows,), _ = prototype_loss(embeddings[:0], prototypes, [nobody], TEMPERATURE)
    (nothing + total).backward()
    assert total.item() == 0 and rows.shape == (0,)
    assert not prototypes.grad.any()


def test_float32_under_autocast(case):
    expected, _ = fused(*case, chunk=50)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        total, _ = fused(*case, chunk=50)
    assert total.dtype == torch.float32
    assert_close(total, expected, rtol=0, atol=0)
