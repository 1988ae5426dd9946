import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from sklearn.linear_model import Ridge

from poa_mm.evaluation.linear import HELD_OUT, STRENGTHS, RidgeSums, evaluate_linear


def one_hot(labels, classes):
    return torch.nn.functional.one_hot(labels, classes).double().numpy()


def sums_of(features, labels, batch=7):
    sums = RidgeSums(features.shape[1])
    for x, y in zip(features.split(batch), labels.split(batch)):
        sums.update(x, y)
    return sums


@pytest.fixture
def data():
    features = torch.randn(60, 5) * torch.tensor([1, 2, 3, 4, 5]) + 3
    return features, (features[:, 0] - features[:, 3] / 4).round().clamp(0, 3).long()


def test_is_ridge_regression_of_scikit_learn(data):
    features, labels = data
    strength = 0.05
    weight, bias = sums_of(features, labels).solve([strength])[0]
    scale = features.double().var(dim=0, unbiased=False).mean().item()
    reference = Ridge(alpha=strength * scale * len(features)).fit(features.numpy(), one_hot(labels, 4))
    np.testing.assert_allclose(weight.T, reference.coef_, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(bias, reference.intercept_, rtol=1e-4, atol=1e-6)


def test_squared_error_is_that_of_the_predictions(data):
    features, labels = data
    weight, bias = sums_of(features[:40], labels[:40]).solve([0.1])[0]
    predictions = features[40:].double() @ weight + bias
    expected = (predictions - torch.from_numpy(one_hot(labels[40:], weight.shape[1]))).square().sum(1).mean()
    assert sums_of(features[40:], labels[40:]).squared_error(weight, bias) == pytest.approx(expected.item(), rel=1e-6)


def test_squared_error_with_other_classes_than_were_fitted(data):
    features, _ = data
    weight, bias = sums_of(features, torch.arange(60) % 2).solve([0.1])[0]
    # The label 3 is none of the two classes: its one-hot vector adds 1 to the squared length of the prediction.
    expected = (features.double() @ weight + bias).square().sum(1).mean().item() + 1
    assert sums_of(features, torch.full((60,), 3)).squared_error(weight, bias) == pytest.approx(expected, rel=1e-6)


def test_sums_add_up_whatever_the_order_of_classes(data):
    features, labels = data
    order = labels.argsort()
    both = sums_of(features[order[:30]], labels[order[:30]]) + sums_of(features[order[30:]], labels[order[30:]])
    expected = sums_of(features, labels)
    assert both.count == expected.count == 60
    for name in ('sum_x', 'sum_xx', 'sum_y', 'sum_xy'):
        torch.testing.assert_close(getattr(both, name), getattr(expected, name))


def test_features_that_tell_nothing_are_refused():
    with pytest.raises(ValueError, match='all images are the same'):
        sums_of(torch.ones(10, 3), torch.arange(10) % 2).solve(STRENGTHS)
    with pytest.raises(ValueError, match='no images'):
        RidgeSums(3).solve(STRENGTHS)


LOADER = dict(batch_size=100, num_workers=0)
DIGITS = dict(
    model=dict(data_preprocessor=dict(mean=[78.0] * 3, std=[95.0] * 3)),
    knn=dict(
        bank=dict(**LOADER, dataset=dict(type='Digits', split='train', pipeline=[dict(type='PackInputs')])),
        query=dict(**LOADER, dataset=dict(type='Digits', split='test', pipeline=[dict(type='PackInputs')])),
    ),
)


@pytest.fixture
def network(elastic_vit):
    init_default_scope('mmpretrain')
    return elastic_vit(img_size=8, patch_size=4)


def test_scores_every_subnet_in_one_pass_or_in_several(network):
    scores = evaluate_linear(Config(DIGITS), network, progress=False)
    assert list(scores) == [str(subnet) for subnet in network.space]
    assert all(0.5 < score < 1 for score in scores.values()), 'random features tell digits apart, not perfectly'
    several = Config(DIGITS)
    several.knn.subnets_per_pass = 4
    assert evaluate_linear(several, network, progress=False) == scores


def test_too_few_images_are_refused(network):
    cfg = Config(DIGITS)
    cfg.knn.bank.dataset.indices = HELD_OUT - 1
    with pytest.raises(ValueError, match='fewer than 5 images'):
        evaluate_linear(cfg, network, ['32x2'], progress=False)


def test_no_subnet_is_refused(network):
    with pytest.raises(ValueError, match='no subnet'):
        evaluate_linear(Config(DIGITS), network, [], progress=False)
