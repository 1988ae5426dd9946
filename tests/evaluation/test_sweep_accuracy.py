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
    assert all(correct.dtype == torch.bool and correct.shape == (3,) for _, correct, _ in metric.results)


@pytest.mark.parametrize('value', [float('nan'), float('inf'), 0.0])
def test_a_classifier_that_has_diverged_never_wins(value):
    """The first of equal or NaN scores is class 0, which may be what most images are."""
    head = LinearSweepHead(num_classes=4, in_channels=8, lrs=LRS)
    with torch.no_grad():
        head.classifiers[1].weight.fill_(value)
        head.classifiers[1].bias.zero_()
    samples = head.predict((torch.randn(30, 8),), [DataSample().set_gt_label(0) for _ in range(30)])
    evaluator = Evaluator(METRICS.build(dict(type='SweepAccuracy')))
    evaluator.process(samples)
    metrics = evaluator.evaluate(30)
    assert metrics['accuracy/top1_lr_0.01'] == 0
    assert metrics['accuracy/best_lr'] != 0.01


@pytest.mark.parametrize('lr', LRS)
def test_a_rate_that_was_chosen_on_other_images(samples, lr):
    evaluator = Evaluator(METRICS.build(dict(type='SweepAccuracy', lr=lr)))
    evaluator.process(samples)
    metrics = evaluator.evaluate(41)
    assert metrics['accuracy/best_lr'] == lr
    assert metrics['accuracy/top1'] == metrics[f'accuracy/top1_lr_{lr:g}']
    evaluator = Evaluator(METRICS.build(dict(type='SweepAccuracy', lr=7.0)))
    evaluator.process(samples)
    with pytest.raises(ValueError, match='learning rate 7 is not among'):
        evaluator.evaluate(41)


def test_a_choice_on_the_very_images_is_said(samples, monkeypatch):
    lines = []
    monkeypatch.setattr('poa_mm.evaluation.sweep_accuracy.print_log', lambda text, *_: lines.append(text))
    for options, said in ((dict(), True), (dict(lr=0.5), False)):
        evaluator = Evaluator(METRICS.build(dict(type='SweepAccuracy', **options)))
        evaluator.process(samples)
        evaluator.evaluate(41)
        assert any('chosen on these very images' in line for line in lines) == said
        lines.clear()
