"""Targets and losses stay finite and right for the largest logits that half precision holds."""

import pytest
import torch
from torch.testing import assert_close

from poa_mm.models import MeanCentering, SinkhornKnopp
from poa_mm.models.losses import Targets, prototype_loss

HALVES = [torch.float16, torch.bfloat16]
EXTREMES = {  # by name, teacher logits (N, K) before they are cast
    'wide': lambda: (torch.randn(24, 64) * 2e4).clamp(-6e4, 6e4),
    'one wins': lambda: torch.eye(24, 64) * 6e4,
    'all the same': lambda: torch.full((24, 64), -6e4),
    'rows apart': lambda: torch.linspace(-6e4, 6e4, 24)[:, None] + torch.randn(24, 64),
    'ordinary': lambda: torch.randn(24, 64) * 0.3,
}


@pytest.mark.parametrize('dtype', HALVES, ids=str)
@pytest.mark.parametrize('name', EXTREMES)
@pytest.mark.parametrize('temperature', [0.04, 0.07])
def test_sinkhorn_knopp(device, dtype, name, temperature):
    logits = EXTREMES[name]().to(dtype)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        targets = SinkhornKnopp()(logits.to(device), temperature)
    assert targets.dtype == torch.float32 and targets.device.type == device.type
    assert targets.isfinite().all() and (targets >= 0).all()
    assert_close(targets.sum(dim=1).cpu(), torch.ones(24), rtol=0, atol=1e-4)
    # In float32 on the CPU; what the device adds is rounding.
    assert_close(targets.cpu(), SinkhornKnopp()(logits.float(), temperature), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('dtype', HALVES, ids=str)
def test_no_patch_is_masked_here(device, dtype):
    for centering in (SinkhornKnopp(), MeanCentering(64)):
        assert centering.to(device)(torch.empty(0, 64, device=device, dtype=dtype), 0.07).shape == (0, 64)
        assert all(buffer.isfinite().all() for buffer in centering.buffers())


@pytest.mark.parametrize('dtype', HALVES, ids=str)
@pytest.mark.parametrize('scale', [1, 100, 3e4])
@pytest.mark.parametrize('chunk', [2**24, 500])
def test_prototype_loss(device, dtype, scale, chunk):
    """Against the plain formula in float64 on the CPU."""
    embeddings = (torch.randn(10, 16) * scale).clamp(-6e4, 6e4).to(dtype)
    prototypes = torch.randn(64, 16)
    probs, weights = torch.softmax(torch.randn(10, 64), dim=1), torch.full((10,), 0.1)

    exact = [value.double().requires_grad_() for value in (embeddings, prototypes)]
    logits = exact[0] @ exact[1].T / 0.1
    expected = -(weights.double() * (probs.double() * logits.log_softmax(dim=1)).sum(dim=1)).sum()
    expected.backward()

    mine = [value.to(device).requires_grad_() for value in (embeddings, prototypes)]
    targets = Targets(probs.to(device), weights.to(device), 1.0)
    loss, _, kept = prototype_loss(*mine, [targets], 0.1, chunk=chunk, keep=4)
    loss.backward()
    step, rounding = torch.finfo(dtype).eps, 1e-4 if scale == 1 else 5e-3  # exp() of large logits in float32
    assert_close(loss.item(), expected.item(), rtol=1e-5, atol=1e-5)
    assert_close(kept.cpu().double(), logits[:4].detach().softmax(dim=1), rtol=0, atol=rounding)
    assert mine[0].grad.dtype == dtype
    assert_close(mine[0].grad.cpu().double(), exact[0].grad, rtol=step, atol=1e-3)
    assert_close(mine[1].grad.cpu().double(), exact[1].grad, rtol=rounding, atol=1e-6 * scale)


@pytest.mark.parametrize('scale', [1, 100, 3e4])
def test_prototype_loss_under_autocast(device, scale):
    """Where a GPU rounds factors to 10 bits: nearly the same for logits as they are, finite for any."""
    embeddings, prototypes = (torch.nn.functional.normalize(torch.randn(n, 64), dim=1) for n in (24, 512))
    probs, weights = torch.softmax(torch.randn(24, 512), dim=1), torch.full((24,), 1 / 24)
    found = []
    for autocast in (True, False):
        values = [value.to(device).requires_grad_() for value in (embeddings * scale, prototypes)]
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
            loss, *_ = prototype_loss(*values, [Targets(probs.to(device), weights.to(device), 1.0)], 0.1)
        found.append([loss.detach(), *torch.autograd.grad(loss, values)])
        assert all(value.isfinite().all() for value in found[-1])
    assert torch.get_float32_matmul_precision() == 'highest'
    for value, expected in zip(*found):
        error = (value - expected).norm() / expected.norm()
        assert error < (3e-3 if scale == 1 else 1), error
