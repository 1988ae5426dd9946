import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.registry import METRICS
from mmpretrain.evaluation import Accuracy
from mmpretrain.structures import DataSample

from poa_mm.models import LinearSweepHead

LRS = (4e-5, 0.01, 0.5)


@pytest.fixture
def samples():
    """Predictions of a head for random features."""
    head = LinearSweepHead(num_classes=4, in_channels=8, lrs=LRS)
    samples = [DataSample().set_gt_label(index % 4) for index in range(41)]
    return head.predict((torch.randn(41, 8),), samples)


def test_accuracy_of_every_rate_as_mmpretrain_computes_it(samples):
    evaluator = Evaluator(METRICS.build(dict(type='SweepAccuracy')))
    for start in range(0, 41, 16):  # batches
        evaluator.process(samples[start : start + 16])
    metrics = evaluator.evaluate(41)

    labels = torch.cat([sample.gt_label for sample in samples])
    scores = torch.stack([sample.pred_scores for sample in samples])
    expected = [Accuracy.calculate(scores[:, index], labels)[0][0].item() for index in range(3)]
    names = ['accuracy/top1', 'accuracy/best_lr', *(f'accuracy/top1_lr_{lr}' for lr in ('4e-05', '0.01', '0.5'))]
    assert list(metrics) == names, "save_best='auto' takes the first"
    assert list(metrics.values())[2:] == pytest.approx(expected)
    assert metrics['accuracy/top1'] == pytest.approx(max(expected))
    assert metrics['accuracy/best_lr'] == LRS[expected.index(max(expected))]
    assert len(set(expected)) > 1


def test_keeps_no_scores(samples):
    """13 scores of 1,000 classes and 50,000 images would be 2.6 GB."""
    metric = METRICS.build(dict(type='SweepAccuracy'))
    metric.process(None, [sample.to_dict() for sample in samples])
    assert all(correct.dtype == torch.bool and correct.shape == (3,) for _, correct in metric.results)
