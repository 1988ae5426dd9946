from math import log

import pytest
import torch
from torch.testing import assert_close

from poa_mm.models import KoLeoLoss


def by_hand(features):
    """Minus the mean log distance to the nearest neighbour on the sphere, pair by pair."""
    points = [row / row.norm() for row in features.double()]
    nearest = [min((a - b).norm() for j, b in enumerate(points) if j != i) for i, a in enumerate(points)]
    return -sum(map(torch.log, nearest)) / len(points)


@pytest.mark.parametrize('shape', [(2, 3), (8, 16), (5, 2)])
def test_by_hand(shape):
    features = 3 * torch.randn(shape)
    assert_close(KoLeoLoss()(features), by_hand(features).float(), rtol=1e-5, atol=1e-5)


def test_orthogonal_and_opposite_points():
    assert_close(KoLeoLoss()(torch.eye(4)).item(), -log(2) / 2)
    assert_close(KoLeoLoss()(torch.tensor([[1.0, 0], [-2, 0]])).item(), -log(2))


def test_length_does_not_matter():
    features = torch.randn(6, 8)
    assert_close(KoLeoLoss()(features * torch.rand(6, 1).add(0.5)), KoLeoLoss()(features))


def test_gradient_pushes_neighbours_apart():
    angles = torch.tensor([0.0, 0.1, 2.0, 2.2])
    features = torch.stack([angles.cos(), angles.sin()], dim=1).requires_grad_()

    def distances():
        return torch.stack([(features[0] - features[1]).norm(), (features[2] - features[3]).norm()]).detach()

    before = distances()
    loss = KoLeoLoss()(features)
    loss.backward()
    with torch.no_grad():
        features -= 0.01 * features.grad
    assert (distances() > before).all()
    assert KoLeoLoss()(features) < loss


def test_single_image_costs_nothing():
    features = torch.randn(1, 8, requires_grad=True)
    loss = KoLeoLoss()(features)
    loss.backward()
    assert loss.item() == 0 and not features.grad.any()


@pytest.mark.parametrize('features', [torch.ones(4, 8), torch.zeros(4, 8)], ids=['same', 'zero'])
def test_collapsed_features_stay_finite(features):
    features.requires_grad_()
    loss = KoLeoLoss()(features)
    loss.backward()
    assert loss.isfinite() and features.grad.isfinite().all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_low_precision_is_computed_in_float32(dtype):
    features = torch.randn(6, 8).to(dtype)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = KoLeoLoss()(features)
    assert loss.dtype == torch.float32
    assert_close(loss, KoLeoLoss()(features.float()))
