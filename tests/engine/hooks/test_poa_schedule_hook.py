import copy
from itertools import pairwise

import pytest
import torch
from mmengine.hooks import Hook

from poa_mm.engine import POAScheduleHook


def test_teacher_temperature_is_a_ramp():
    hook = POAScheduleHook(teacher_temp=(0.04, 0.07), teacher_temp_iters=31)
    values = [hook.teacher_temp_at(i) for i in range(40)]
    assert values[0] == pytest.approx(0.04)
    assert values[10] == pytest.approx(0.05)
    assert values[30] == values[39] == 0.07
    steps = [b - a for a, b in pairwise(values[:31])]
    assert steps == pytest.approx([0.001] * 30)


@pytest.mark.parametrize('iters', [0, 1])
def test_no_ramp_is_the_last_value(iters):
    assert POAScheduleHook(teacher_temp_iters=iters).teacher_temp_at(0) == 0.07


class Record(Hook):
    """What is in force while the model computes."""

    priority = 'LOW'

    def __init__(self):
        self.temps, self.patch, self.prototypes, self.others, self.logged = [], [], [], [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.temps.append(runner.model.teacher_temp)
        self.patch.append(runner.model.patch_loss_active)
        self.prototypes.append(runner.model.head.prototypes[0].weight.detach().clone())
        self.others.append(runner.model.head.projectors[0].layers[0].weight.detach().clone())

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.logged.append(set(outputs))


def test_values_of_each_iteration(run_config, build_runner):
    run_config.custom_hooks[1] = dict(
        type='POAScheduleHook', teacher_temp_iters=4, patch_loss_start=2, freeze_prototypes_iters=2
    )
    run_config.param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=False, begin=0, end=8)]
    record = Record()
    runner = build_runner(run_config)
    runner.register_hook(record, priority='LOW')
    runner.train()

    assert record.temps == pytest.approx([0.04, 0.05, 0.06, 0.07])
    assert record.patch == [False, False, True, True]
    assert ['L_IS_patch' in terms for terms in record.logged] == record.patch
    still = [torch.equal(a, b) for a, b in zip(record.prototypes, record.prototypes[1:])]
    assert still == [True, True, False]
    assert not torch.equal(record.others[0], record.others[1])
    # Freezing must not disturb the schedule, which computes a learning rate from the one before.
    factors = {round(group['lr'] / group['initial_lr'], 12) for group in runner.optim_wrapper.param_groups}
    assert factors == {0.5}


def test_freezing_needs_marked_groups(run_config, build_runner):
    run_config.custom_hooks[1].freeze_prototypes_iters = 1
    run_config.optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
    with pytest.raises(ValueError, match='POAOptimWrapperConstructor'):
        build_runner(run_config).train()


@pytest.mark.parametrize('options', [dict(teacher_temp=(0.0, 0.07)), dict(patch_loss_start=-1)])
def test_bad_values_are_refused(options):
    with pytest.raises(ValueError, match=str(next(iter(options)))):
        POAScheduleHook(**options)


WRONG_MASKS = {
    'twice as fine': (dict(grid=4, min_patches=1), r'mask of shape \(2, 4, 4\) .* must be boolean \(2, 2, 2\)'),
    'turned': (dict(grid=(1, 4), min_patches=1), r'mask of shape \(2, 1, 4\)'),
    'of one crop': (dict(grid=2, min_patches=1, num_masks=1), r'mask of shape \(1, 2, 2\)'),
    'missing': (None, 'has no mask: add BlockMask'),
}


@pytest.mark.parametrize('name', WRONG_MASKS)
def test_masks_that_will_not_fit_stop_before_the_first_iteration(run_config, build_runner, name):
    """Though the patch loss starts much later."""
    options, message = WRONG_MASKS[name]
    run_config.custom_hooks[1].patch_loss_start = 3
    pipeline = run_config.train_dataloader.dataset.pipeline
    pipeline[1:2] = [] if options is None else [dict(type='BlockMask', **options)]
    runner = build_runner(run_config)
    with pytest.raises(ValueError, match=message):
        runner.train()
    assert runner.iter == 0


@pytest.mark.parametrize('change', [dict(patch_weight=0.0), dict(patch_loss_start=4)])
def test_masks_that_never_take_effect_need_not_be_there(run_config, build_runner, change):
    """Without patch loss, or where it would start behind the end."""
    run_config.train_dataloader.dataset.pipeline.pop(1)
    run_config.custom_hooks[1].patch_loss_start = change.get('patch_loss_start', 0)
    run_config.model.patch_weight = change.get('patch_weight', 1.0)
    runner = build_runner(run_config)
    runner.train()
    assert runner.iter == 4


# --- heads first ------------------------------------------------------------------------------


class Weights(Hook):
    """The student before each iteration and after the run; what the optimizer remembers of the backbone."""

    priority = 'VERY_LOW'

    def __init__(self):
        self.backbone, self.teacher, self.head, self.remembered = [], [], [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.snapshot(runner)

    def after_train(self, runner):
        self.snapshot(runner)

    def snapshot(self, runner):
        model = runner.model
        for record, module in (
            (self.backbone, model.backbone),
            (self.teacher, model.teacher['backbone']),
            (self.head, model.head),
        ):
            record.append({name: value.clone() for name, value in module.state_dict().items()})
        state = runner.optim_wrapper.optimizer.state
        self.remembered.append(sum(bool(state.get(param)) for param in model.backbone.parameters()))


def equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def heads_first(run_config, build_runner, iters, **optimizer):
    run_config.custom_hooks[1].freeze_backbone_iters = iters
    run_config.optim_wrapper.optimizer = dict(**optimizer, weight_decay=0.5)
    weights = Weights()
    runner = build_runner(run_config)
    runner.register_hook(weights)
    runner.train()
    return runner, weights


@pytest.mark.parametrize('optimizer', [dict(type='AdamW', lr=0.01), dict(type='SGD', lr=0.1, momentum=0.9)], ids=str)
def test_the_backbone_waits_for_the_heads(run_config, build_runner, optimizer):
    """To the last bit, whatever weight decay and momentum would do; so does its average."""
    _, weights = heads_first(run_config, build_runner, 2, **optimizer)
    changed = [not equal(*pair) for pair in pairwise(weights.backbone)]
    assert changed == [False, False, True, True]
    assert [not equal(*pair) for pair in pairwise(weights.teacher)] == changed
    assert all(not equal(*pair) for pair in pairwise(weights.head))
    assert weights.remembered[:3] == [0, 0, 0] and weights.remembered[3] > 0


def test_heads_first_under_accumulation(run_config, build_runner):
    """An update counts as that of the iteration which makes it."""
    run_config.optim_wrapper.accumulative_counts = 2
    _, weights = heads_first(run_config, build_runner, 2, type='AdamW', lr=0.01)
    assert [not equal(*pair) for pair in pairwise(weights.backbone)] == [False, False, False, True]
    assert [not equal(*pair) for pair in pairwise(weights.head)] == [False, True, False, True]


@pytest.mark.parametrize('interrupted', [1, 3])
def test_heads_first_and_resumed(run_config, build_runner, interrupted):
    run_config.train_cfg.update(type='ResumableTrainLoop', max_iters=interrupted)
    run_config.train_dataloader.sampler.type = 'ResumableSampler'
    whole = copy.deepcopy(run_config)
    whole.train_cfg.max_iters, whole.work_dir = 4, f'{run_config.work_dir}_whole'
    run_config.custom_hooks[0].momentum = whole.custom_hooks[0].momentum = (0.9, 0.9)  # of any length
    expected, _ = heads_first(whole, build_runner, 2, type='AdamW', lr=0.01)
    heads_first(run_config, build_runner, 2, type='AdamW', lr=0.01)
    run_config.train_cfg.max_iters, run_config.resume = 4, True
    found, weights = heads_first(run_config, build_runner, 2, type='AdamW', lr=0.01)
    assert len(weights.backbone) == 4 - interrupted + 1
    assert equal(found.model.state_dict(), expected.model.state_dict())


def test_heads_first_needs_marked_groups(run_config, build_runner):
    run_config.custom_hooks[1].freeze_backbone_iters = 1
    run_config.optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
    with pytest.raises(ValueError, match=r'freeze_backbone_iters needs .*POAOptimWrapperConstructor$'):
        build_runner(run_config).train()
