import time

import pytest

from poa_mm.elastic import Subnet
from poa_mm.evaluation.latency import Condition, describe_machine, summarise, time_visit, turns


def test_the_first_call_warms_up():
    waits = iter([0.2, *[0.002] * 100])
    times = time_visit(lambda: time.sleep(next(waits)), seconds=0.02)
    assert 2 <= len(times) <= 10 and min(times) >= 0.002


def test_calls_are_bounded_both_ways():
    calls = []
    assert len(time_visit(lambda: calls.append(1), seconds=100, max_calls=7)) == 7
    assert len(calls) == 8
    assert len(time_visit(lambda: time.sleep(0.01), seconds=0)) == 2


def test_calls_that_are_delayed_leave_no_fewer():
    clock = iter([time for start in range(10) for time in (start, start + (0.9 if start % 2 else 0.1))])
    times = time_visit(lambda: None, seconds=0.75, clock=lambda: next(clock))
    assert len(times) == 8 and sorted(times)[3] == pytest.approx(0.1)


def test_time_is_that_of_the_clock():
    ticks = iter(range(100))
    assert time_visit(lambda: None, seconds=3, clock=lambda: next(ticks)) == [1, 1, 1]


def test_summary():
    timing = summarise([0.01 * n for n in range(1, 12)], batch=6)
    assert timing.median_ms == pytest.approx(60)
    assert timing.p90_ms == pytest.approx(100)
    assert timing.images_per_s == pytest.approx(100)
    assert timing.calls == 11
    with pytest.raises(ValueError, match='no call'):
        summarise([], batch=1)


def test_every_subnet_has_its_turn_in_every_round():
    subnets = [Subnet(8, depth) for depth in range(1, 11)]
    order = list(turns(subnets, 3))
    assert [index for index, _ in order] == [0] * 10 + [1] * 10 + [2] * 10
    rounds = [[subnet for index, subnet in order if index == n] for n in range(3)]
    assert all(sorted(found) == subnets for found in rounds)
    assert rounds[0] != rounds[1], 'the order is another one, so that no subnet always follows the same'
    assert order == list(turns(subnets, 3)), 'and the same in every run'


def test_condition_is_written_and_read():
    condition = Condition('onnxruntime', 'cpu', 8)
    assert str(condition) == 'onnxruntime-cpu-b8' and Condition.parse(str(condition)) == condition
    for text in ('torch-cpu', 'torch-cpu-8', 'torch-cpu-b', 'torch-cpu-b1-b2'):
        with pytest.raises(ValueError, match='RUNTIME-DEVICE-bBATCH'):
            Condition.parse(text)


def test_machine_is_described():
    machine = describe_machine(['cpu'])
    assert set(machine) == {'processor', 'torch'} and all(machine.values())
