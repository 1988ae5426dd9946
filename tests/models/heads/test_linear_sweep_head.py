import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from mmengine.runner import Runner
from mmpretrain.structures import DataSample
from torch.nn import functional as F
from torch.testing import assert_close

from poa_mm.deploy.downstream import classifier, vit
from poa_mm.models import LinearSweepHead

LRS = (0.01, 0.1, 2.0)


@pytest.fixture
def head(randomise):
    return randomise(LinearSweepHead(num_classes=5, in_channels=8, lrs=LRS))


@pytest.fixture
def batch():
    samples = [DataSample().set_gt_label(index % 5) for index in range(6)]
    return torch.randn(6, 8), samples


def test_loss_of_each_classifier_by_hand(head, batch):
    features, samples = batch
    losses = head.loss((torch.zeros(6, 8), features), samples)
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    assert list(losses) == ['loss_lr_0.01', 'loss_lr_0.1', 'loss_lr_2']
    for loss, linear in zip(losses.values(), head.classifiers):
        assert_close(loss, F.cross_entropy(features @ linear.weight.T + linear.bias, labels))


def test_gradient_of_the_sum_is_each_ones_own(head, batch):
    features, samples = batch
    losses = head.loss((features,), samples)
    weights = [linear.weight for linear in head.classifiers]
    own = [torch.autograd.grad(loss, w, retain_graph=True)[0] for loss, w in zip(losses.values(), weights)]
    sum(losses.values()).backward()
    for weight, grad in zip(weights, own):
        assert torch.equal(weight.grad, grad) and grad.any()


def test_accuracy_of_the_batch_is_logged_on_demand(batch):
    features, samples = batch
    losses = LinearSweepHead(5, 8, LRS, cal_acc=True).loss((features,), samples)
    assert {'accuracy_top-1_lr_0.01', 'loss_lr_0.01'} < set(losses)
    assert len(losses) == 2 * len(LRS)


def test_predictions_hold_the_scores_by_rate(head, batch):
    features, samples = batch
    for predictions in (head.predict((features,), samples), head.predict((features,))):
        scores = torch.stack([sample.pred_scores for sample in predictions])
        assert_close(scores, torch.stack([logits.softmax(dim=1) for logits in head((features,))], dim=1))
        assert all(sample.lrs == LRS for sample in predictions)
    assert 'gt_label' in samples[0]


def test_initialisation():
    head = LinearSweepHead(100, 200, LRS)
    head.init_weights()
    for linear in head.classifiers:
        assert linear.weight.std().item() == pytest.approx(0.01, rel=0.05) and not linear.bias.any()
    assert not torch.equal(head.classifiers[0].weight, head.classifiers[1].weight)


@pytest.mark.parametrize('lrs', [[], [0.1, -0.1], [0.0], [0.1, 0.1], [0.1, 0.1 + 1e-9], [float('nan')]])
def test_learning_rates_that_make_no_sweep(lrs):
    with pytest.raises(ValueError, match='distinct positive'):
        LinearSweepHead(5, 8, lrs)


@pytest.mark.parametrize('value', [float('nan'), float('inf'), 3e38])
def test_one_that_diverges_leaves_the_others_alone(head, batch, value):
    """Gradient scalers and clipping look at all gradients together."""
    features, samples = batch
    sum(head.loss((features,), samples).values()).backward()
    expected = [linear.weight.grad.clone() for linear in head.classifiers]
    with torch.no_grad():
        head.classifiers[1].weight.fill_(value)
    head.zero_grad()
    losses = head.loss((features * 10 if value == 3e38 else features,), samples)
    sum(losses.values()).backward()
    assert all(param.grad.isfinite().all() for param in head.parameters())
    assert all(loss.isfinite() for loss in losses.values())
    assert not head.classifiers[1].weight.grad.any()
    if value != 3e38:
        assert torch.equal(head.classifiers[0].weight.grad, expected[0])
        assert torch.equal(head.classifiers[2].weight.grad, expected[2])


def test_one_that_has_diverged_is_stored_as_zeros(head):
    plain = {key: value.clone() for key, value in head.state_dict().items()}
    with torch.no_grad():
        head.classifiers[2].bias[0] = float('nan')
    state = head.state_dict()
    for key, value in plain.items():
        assert torch.equal(state[key], torch.zeros_like(value) if key.startswith('classifiers.2.') else value)
    assert head.classifiers[2].bias.isnan().any(), 'the head itself is as it was'


# --- training --------------------------------------------------------------------------------


@pytest.fixture
def scope():
    init_default_scope('mmpretrain')
    yield
    DefaultScope._instance_dict.clear()


def tiny_vit(checkpoint=None):
    return vit('32x2', checkpoint, img_size=8, patch_size=4, head_dim=16, layer_scale_init_value=1.0)


SWEEP = dict(constructor='LinearSweepOptimWrapperConstructor')


def test_parameter_groups(scope):
    head = dict(type='LinearSweepHead', num_classes=5, lrs=LRS)
    model = Config(dict(type='ImageClassifier', head=head))
    model.merge_from_dict(classifier(tiny_vit(), frozen=True))
    model = MODELS.build(model.to_dict())
    wrapper = build_optim_wrapper(model, dict(**SWEEP, optimizer=dict(type='SGD', lr=0.5, momentum=0.9)))
    groups = wrapper.optimizer.param_groups
    rates = {param: group['lr'] for group in groups for param in group['params']}
    expected = {param: 0.5 * lr for lr, linear in zip(LRS, model.head.classifiers) for param in linear.parameters()}
    assert rates == pytest.approx(expected)


def test_order_of_more_than_ten_rates(scope):
    head = dict(type='LinearSweepHead', num_classes=5, in_channels=32, lrs=[0.1 * n for n in range(1, 13)])
    model = MODELS.build(dict(type='ImageClassifier', backbone=dict(tiny_vit(), frozen_stages=2), head=head))
    wrapper = build_optim_wrapper(model, dict(**SWEEP, optimizer=dict(type='SGD', lr=1.0)))
    rates = {param: group['lr'] for group in wrapper.optimizer.param_groups for param in group['params']}
    assert [rates[linear.weight] for linear in model.head.classifiers] == pytest.approx(head['lrs'])


def test_backbone_must_be_frozen(scope):
    head = dict(type='LinearSweepHead', num_classes=5, in_channels=32, lrs=LRS)
    model = MODELS.build(dict(type='ImageClassifier', backbone=tiny_vit(), head=head))
    with pytest.raises(ValueError, match=r'frozen backbone, but backbone\.cls_token'):
        build_optim_wrapper(model, dict(**SWEEP, optimizer=dict(type='SGD', lr=1.0)))


def run(name, folder, head, optim_wrapper, metric):
    """Trains on some digits from zero weights and gives the model and the metrics."""
    loader = dict(batch_size=64, num_workers=0, collate_fn=dict(type='default_collate'))
    digits = dict(type='Digits', split='val', pipeline=[dict(type='PackInputs')])
    zeros = dict(type='Constant', layer='Linear', val=0.0)
    model = Config(dict(type='ImageClassifier', head=dict(**head, num_classes=10, init_cfg=zeros)))
    model.merge_from_dict(classifier(tiny_vit(folder / 'backbone.pth'), frozen=True))
    # Not from_cfg, as mmengine takes seconds to format a config, again with every checkpoint.
    runner = Runner(
        model.to_dict(),
        str(folder / name),
        default_scope='mmpretrain',
        data_preprocessor=dict(mean=[78.0] * 3, std=[95.0] * 3, num_classes=10),
        train_dataloader=dict(**loader, sampler=dict(type='DefaultSampler', shuffle=True), dataset=digits),
        val_dataloader=dict(**loader, sampler=dict(type='DefaultSampler', shuffle=False), dataset=digits),
        val_evaluator=metric,
        train_cfg=dict(by_epoch=True, max_epochs=2),
        val_cfg=dict(),
        optim_wrapper=optim_wrapper,
        param_scheduler=dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, convert_to_iter_based=True),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', save_best='accuracy/top1')),
        randomness=dict(seed=0),
        experiment_name=f'{folder.name}_{name}',
    )
    runner.train()
    return runner.model, runner.val_loop.run()


def test_a_sweep_is_many_ordinary_linear_probes(scope, tmp_path, randomise):
    """Each classifier against mmpretrain's own head, optimizer and metric, trained for itself with its rate."""
    backbone = randomise(MODELS.build(tiny_vit())).state_dict()
    torch.save(backbone, tmp_path / 'backbone.pth')
    sgd = dict(type='SGD', momentum=0.9)
    sweep, metrics = run(
        'sweep',
        tmp_path,
        dict(type='LinearSweepHead', lrs=LRS),
        dict(**SWEEP, optimizer=dict(sgd, lr=1.0)),
        dict(type='SweepAccuracy'),
    )
    accuracies = []
    for lr, found in zip(LRS, sweep.head.classifiers):
        head = dict(type='LinearClsHead')
        single, top = run(f'lr_{lr}', tmp_path, head, dict(optimizer=dict(sgd, lr=lr)), dict(type='Accuracy'))
        assert found.weight.any()
        assert_close(found.weight, single.head.fc.weight, rtol=1e-6, atol=1e-7)
        assert_close(found.bias, single.head.fc.bias, rtol=1e-6, atol=1e-7)
        assert metrics[f'accuracy/top1_lr_{lr:g}'] == pytest.approx(top['accuracy/top1'])
        accuracies.append(top['accuracy/top1'])
        for name, tensor in backbone.items():
            assert torch.equal(sweep.backbone.state_dict()[name], tensor), name
    best = max(accuracies)
    assert len(set(accuracies)) == 3 and best > 30, 'they learn, each in its own way'
    assert metrics['accuracy/top1'] == pytest.approx(best)
    assert metrics['accuracy/best_lr'] == LRS[accuracies.index(best)]
    assert list((tmp_path / 'sweep').glob('best_accuracy_top1_epoch_*.pth'))
