import math
import re
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.registry import MODELS

from poa_mm.engine import RunHealthHook
from poa_mm.engine.hooks.run_health_hook import size_classes

SIZES = ('small', 'medium', 'large')


@pytest.fixture
def runner(request):
    """As much of a runner as the hook looks at; batches of 8."""
    warnings = []
    return SimpleNamespace(
        iter=0,
        model=torch.nn.Linear(1, 1),
        message_hub=MessageHub.get_instance(request.node.name),
        train_dataloader=SimpleNamespace(batch_size=8),
        logger=SimpleNamespace(warning=warnings.append),
        warnings=warnings,
    )


def train(hook, runner, iterations, **scalars):
    for _ in range(iterations):
        for name, value in scalars.items():
            runner.message_hub.update_scalar(f'train/{name}', value)
        hook.after_train_iter(runner, runner.iter)
        runner.iter += 1


def started(runner, **options):
    hook = RunHealthHook(interval=2, entropy_begin=2, **options)
    hook.before_train(runner)
    return hook


def current(runner, name):
    return runner.message_hub.get_scalar(f'train/{name}').current()


def test_speed_without_the_first_iteration(runner):
    hook = started(runner)
    train(hook, runner, 1, time=100.0, data_time=99.0)
    train(hook, runner, 1, time=0.5, data_time=0.1)
    assert current(runner, 'images_per_s') == pytest.approx(16)
    assert current(runner, 'data_wait') == pytest.approx(0.2)
    train(hook, runner, 2, time=0.25, data_time=0.0)
    assert current(runner, 'images_per_s') == pytest.approx(32)
    assert current(runner, 'data_wait') == 0
    assert not runner.warnings


def test_waiting_for_data_is_said_once_until_it_is_over(runner):
    hook = started(runner)
    slow, fast = dict(time=1.0, data_time=0.6), dict(time=1.0, data_time=0.1)
    train(hook, runner, 6, **slow)
    assert len(runner.warnings) == 1
    assert 'Data loading is the bottleneck: 60%' in runner.warnings[0]
    train(hook, runner, 2, **fast)
    train(hook, runner, 2, **slow)
    assert len(runner.warnings) == 2


@pytest.mark.parametrize(
    ('share', 'message'),
    [(0.001, 'single prototypes.*near 0'), (0.5, None), (0.999, 'uniform targets.*the highest')],
)
def test_collapse_of_the_teacher(runner, share, message):
    hook = started(runner)
    train(hook, runner, 6, teacher_entropy_64=math.log(64) / 2, teacher_entropy_128=share * math.log(128))
    assert len(runner.warnings) == (message is not None)
    if message:
        assert 'on 128 prototypes' in runner.warnings[0]
        assert re.search(message, runner.warnings[0])


def test_an_untrained_teacher_is_left_alone(runner):
    hook = RunHealthHook(interval=1, entropy_begin=3)
    hook.before_train(runner)
    train(hook, runner, 3, teacher_entropy_64=0.0)
    assert not runner.warnings
    train(hook, runner, 1, teacher_entropy_64=0.0)
    assert len(runner.warnings) == 1


class Logged(Hook):
    priority = 'LOW'

    def after_train(self, runner):
        self.names = set(runner.message_hub.log_scalars)


def test_in_a_run(run_config, build_runner):
    run_config.custom_hooks.append(dict(type='RunHealthHook', interval=2))
    logged = Logged()
    build_runner(run_config, [logged]).train()
    assert {'train/images_per_s', 'train/data_wait', 'train/prototypes_in_use_16'} <= logged.names


class Dealt(Hook):
    """Notes subnet and loss of every iteration."""

    def before_train(self, runner):
        self.seen = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.seen.append((runner.model.deck.last, float(outputs['loss'])))

    def after_train(self, runner):
        scalars = runner.message_hub.log_scalars
        self.logged = {name: scalars[f'train/loss_{name}'].data[0] for name in SIZES if f'train/loss_{name}' in scalars}


def test_loss_by_size_of_the_elastic_student(run_config, build_runner):
    run_config.custom_hooks.append(dict(type='RunHealthHook'))
    run_config.train_cfg.max_iters = 8
    dealt = Dealt()
    runner = build_runner(run_config, [dealt])
    runner.train()
    classes = size_classes(runner.model.backbone)
    assert len(dealt.logged) > 1
    for name, losses in dealt.logged.items():
        assert losses.tolist() == pytest.approx([loss for subnet, loss in dealt.seen if classes[subnet] == name])
    assert sum(map(len, dealt.logged.values())) == 8


def test_size_classes(run_config):
    backbone = MODELS.build(run_config.model.backbone)
    classes = size_classes(backbone)
    sizes = {name: [backbone.cost(subnet).params for subnet in classes if classes[subnet] == name] for name in SIZES}
    assert [len(sizes[name]) for name in SIZES] == [2, 2, 2]
    assert max(sizes['small']) <= min(sizes['medium']) and max(sizes['medium']) <= min(sizes['large'])


def test_bad_values_are_refused():
    with pytest.raises(ValueError, match='interval 0 is below 1'):
        RunHealthHook(interval=0)
