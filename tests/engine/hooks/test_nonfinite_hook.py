import json
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook

from poa_mm.checkpoint import read_checkpoint
from poa_mm.elastic import SubnetDeck
from poa_mm.engine import NonFiniteError, NonFiniteHook


class Poison(Hook):
    """Makes the loss of some iterations NaN, through the images; keeps the state after each iteration."""

    def __init__(self, iterations):
        self.iterations = iterations
        self.states, self.optimizer = [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter in self.iterations:
            data_batch['inputs'][0] = data_batch['inputs'][0] * torch.tensor(float('nan'))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.states.append({key: value.clone() for key, value in runner.model.state_dict().items()})
        state = runner.optim_wrapper.optimizer.state_dict()['state']
        self.optimizer.append({(i, key): value.clone() for i, entry in state.items() for key, value in entry.items()})


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture
def guarded(run_config, build_runner):
    """A run of 4 iterations whose ``poisoned`` ones are not finite, and what it left."""

    def make(poisoned, max_in_a_row=10):
        run_config.custom_hooks.append(dict(type='NonFiniteHook', max_in_a_row=max_in_a_row))
        # Has a buffer that moves in every iteration.
        run_config.model.centering = dict(type='MeanCentering')
        poison = Poison(poisoned)
        runner = build_runner(run_config)
        runner.register_hook(poison, priority='VERY_LOW')
        return runner, poison

    return make


def test_an_iteration_that_is_not_finite_changes_nothing(guarded):
    runner, poison = guarded({1, 2})
    runner.train()
    changes = [
        (not same(*states), not same(*optimizer))
        for states, optimizer in zip(zip(poison.states, poison.states[1:]), zip(poison.optimizer, poison.optimizer[1:]))
    ]
    assert changes == [(False, False), (False, False), (True, True)]
    assert runner.iter == 4
    assert runner.model.deck.dealt == 4
    assert all(value.isfinite().all() for value in poison.states[-1].values())
    assert any('centre' in key for key in poison.states[-1])


def test_too_many_in_a_row_stop_the_run(guarded, run_config):
    run_config.default_hooks.checkpoint.interval = 1
    runner, poison = guarded({1, 2, 3}, max_in_a_row=2)
    with pytest.raises(NonFiniteError, match=r'iteration 2 are not finite, the last of 2 in a row; see .*rank0\.json'):
        runner.train()

    report = json.loads(Path(run_config.work_dir, 'nonfinite_iter_2_rank0.json').read_text())
    assert report['iteration'] == 2
    assert report['subnet'] in map(str, runner.model.backbone.space)
    assert report['losses']['loss'] == 'nan'
    assert {'L_IS', 'L_ES1', 'L_ES2'} <= report['losses'].keys()
    assert len(set(report['sample_idx'])) == 8
    assert all(isinstance(index, int) for index in report['sample_idx'])
    kept = read_checkpoint(Path(run_config.work_dir, 'iter_1.pth'))['state_dict']
    assert same(dict(kept), poison.states[0])


@pytest.mark.parametrize(('poisoned', 'stops_at'), [(range(1, 10), None), (range(1, 11), 10), (range(12), 9)])
def test_the_tenth_in_a_row_stops_the_run(guarded, run_config, poisoned, stops_at):
    """As shipped: nine in a row are passed over, ten are not."""
    run_config.train_cfg.max_iters = 12
    runner, _ = guarded(set(poisoned))
    if stops_at is None:
        runner.train()
        assert runner.iter == 12
        return
    with pytest.raises(NonFiniteError, match=f'iteration {stops_at} are not finite, the last of 10 in a row'):
        runner.train()


def test_a_finite_iteration_starts_the_count_anew(guarded):
    runner, _ = guarded({0, 2}, max_in_a_row=2)
    runner.train()
    assert runner.iter == 4


def test_subnet_of_the_report_is_the_last_one_dealt(guarded, run_config):
    runner, _ = guarded({0}, max_in_a_row=1)
    with pytest.raises(NonFiniteError):
        runner.train()
    report = json.loads(Path(run_config.work_dir, 'nonfinite_iter_0_rank0.json').read_text())
    assert report['subnet'] == str(SubnetDeck(runner.model.backbone.space, seed=0).deal())


def test_a_wrapper_that_does_not_guard_is_refused(guarded, run_config):
    run_config.optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
    runner, _ = guarded(set())
    with pytest.raises(TypeError, match=r'needs an optimizer wrapper of type POAOptimWrapper.*got OptimWrapper'):
        runner.train()


def test_bad_values_are_refused():
    with pytest.raises(ValueError, match='max_in_a_row 0'):
        NonFiniteHook(max_in_a_row=0)
