import copy

import pytest
from mmengine.hooks import CheckpointHook, IterTimerHook, ParamSchedulerHook, ProfilerHook
from mmengine.registry import HOOKS

from poa_mm import engine
from poa_mm.engine.hooks.once import OnceHook, check_hooks, check_lists

OWN = [getattr(engine, name) for name in engine.__all__ if name.endswith('Hook')]
OPTIONS = {'POACheckpointHook': dict(by_epoch=False, interval=1)}


class Derived(engine.POAScheduleHook):
    """A user's own."""


def test_all_of_our_hooks_are_there_once():
    assert len(OWN) >= 10
    assert [cls.__name__ for cls in OWN if not issubclass(cls, OnceHook)] == []


@pytest.mark.parametrize('cls', OWN, ids=lambda cls: cls.__name__)
def test_a_second_one_is_refused(cls):
    if cls is engine.CompileBlocksHook:
        pytest.importorskip('torch', '2.5')
    hooks = [HOOKS.build(dict(type=cls, **OPTIONS.get(cls.__name__, {}))) for _ in range(2)]
    check_hooks(hooks[:1])
    with pytest.raises(ValueError, match=f'two hooks of one kind, {cls.__name__}, and'):
        check_hooks(hooks)


@pytest.mark.parametrize(
    ('first', 'second', 'names'),
    [
        (engine.POAScheduleHook(), Derived(), 'POAScheduleHook and Derived'),
        (ParamSchedulerHook(), ParamSchedulerHook(), 'ParamSchedulerHook'),
        (IterTimerHook(), IterTimerHook(), 'IterTimerHook'),
        (CheckpointHook(by_epoch=False), engine.POACheckpointHook(by_epoch=False), 'CheckpointHook and POACheckpoint'),
    ],
)
def test_relatives_are_of_one_kind(first, second, names):
    with pytest.raises(ValueError, match=names):
        check_hooks([engine.TeacherEMAHook(), first, second])


def test_hooks_of_other_kinds_go_together():
    check_hooks([cls(**OPTIONS.get(cls.__name__, {})) for cls in OWN if cls is not engine.CompileBlocksHook])
    check_hooks([ProfilerHook(), ProfilerHook()])
    check_hooks([CheckpointHook(by_epoch=False), CheckpointHook(by_epoch=False, out_dir='elsewhere')])


@pytest.mark.parametrize('kind', ['POAScheduleHook', 'TeacherEMAHook', 'SupernetCheckpointHook'])
def test_any_runner_refuses_it_before_it_trains(run_config, build_runner, kind):
    run_config.custom_hooks.append(dict(type=kind))
    runner = build_runner(run_config)
    with pytest.raises(ValueError, match=f'two hooks of one kind, {kind}'):
        runner.train()
    assert runner.iter == 0


def test_equal_entries_of_a_list_are_refused(run_config):
    check_lists(run_config)
    check_lists(dict(custom_hooks=None, param_scheduler=dict(type='CosineAnnealingLR')))
    run_config.custom_hooks += [dict(type='SyncBuffersHook'), *copy.deepcopy(run_config.custom_hooks[:1])]
    with pytest.raises(ValueError, match=r"custom_hooks holds the same entry twice, at 0 and 4: .*'TeacherEMAHook'"):
        check_lists(run_config)
    with pytest.raises(ValueError, match='param_scheduler holds the same entry twice, at 0 and 1'):
        check_lists(dict(param_scheduler=[dict(type='ConstantLR', factor=0.5), dict(type='ConstantLR', factor=0.5)]))
