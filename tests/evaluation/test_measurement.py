import json
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from poa_mm.elastic import Cost, Subnet, SubnetSpace
from poa_mm.evaluation import measurement
from poa_mm.evaluation.measurement import MAX_ERROR, Measurement, MeasureSettings
from poa_mm.evaluation.unfinished import NAME, Unfinished


class Machine:
    """Runs no network: a subnet takes what ``latency`` says, in seconds, and counts its turns."""

    def __init__(self, latency):
        self.latency = latency
        self.turns = []
        self.stop_after = None

    @contextmanager
    def open(self, subnet):
        if len(self.turns) == self.stop_after:
            raise KeyboardInterrupt
        self.turns.append(subnet)
        yield lambda images: (subnet, len(images))

    def peak_memory(self, subnet, images):
        return 1000 * subnet.width * subnet.depth * len(images)


def additive(subnet):
    return 0.001 * (1 + 0.01 * subnet.width * (subnet.depth + subnet.width % 3))


@pytest.fixture
def measure(monkeypatch, tmp_path):
    """Measures a space on a machine, and gives what was found."""
    space = SubnetSpace(range(6, 17), range(12, 25))

    def measure(machine, space=space, **settings):
        backbone = SimpleNamespace(space=space, in_channels=3, img_size=(8, 8), cost=lambda subnet: Cost(1, 2))
        monkeypatch.setattr(measurement, 'make_runtime', lambda *args, **kwargs: machine)
        monkeypatch.setattr(measurement, 'time_visit', lambda run, clock: [machine.latency(run[0]) * run[1]] * 2)
        unfinished = Unfinished(tmp_path, {'settings': 'the same'})
        try:
            return Measurement(backbone, MeasureSettings(**settings), unfinished, progress=False).run()
        finally:
            unfinished.write()

    return measure


def test_a_spread_is_timed_in_turns_and_the_rest_predicted(measure):
    machine = Machine(additive)
    found = measure(machine, rounds=3, batches=(1, 4))
    assert len(set(machine.turns)) == 55 and len(machine.turns) == 3 * 55
    assert len(found['costs']) == 143
    for name, costs in found['costs'].items():
        subnet = Subnet.parse(name)
        for batch in (1, 4):
            cost = costs[f'torch-cpu-b{batch}']
            assert cost['kind'] == ('measured' if subnet in machine.turns else 'predicted')
            assert cost['median_ms'] == pytest.approx(1000 * batch * additive(subnet))
            assert cost['images_per_s'] == pytest.approx(1 / additive(subnet))
            assert cost['peak_memory'] == pytest.approx(machine.peak_memory(subnet, [0] * batch), abs=1)
            assert (cost['p90_ms'] is None) == (cost['calls'] == 0) == (cost['kind'] == 'predicted')
    for fit in found['fits'].values():
        assert fit['latency']['count'] == fit['peak_memory']['count'] == 11
        assert fit['latency']['median_error'] < 1e-6 and fit['latency']['kendall_tau'] == pytest.approx(1)


def test_more_is_timed_where_the_prediction_is_bad(measure):
    # Costs that no sum over blocks can follow.
    rough = Machine(lambda subnet: additive(subnet) * (1 + 0.5 * (subnet.depth * 7 % 5)))
    found = measure(rough, rounds=1)
    assert {cost['torch-cpu-b1']['kind'] for cost in found['costs'].values()} == {'measured'}
    assert not found['fits'], 'nothing is predicted, so there is no error to tell'
    assert len(rough.turns) == 55 + 99 + 143


def test_a_fit_that_is_kept_is_good(measure):
    # Odd depths are slower: whatever the depths of a spread are, some are of the other kind.
    bumpy = Machine(lambda subnet: additive(subnet) * (1 + 0.08 * (subnet.depth % 2)))
    found = measure(bumpy, rounds=1)
    for fit in found['fits'].values():
        assert fit['latency']['median_error'] <= MAX_ERROR


def test_all_are_timed_if_told(measure):
    machine = Machine(additive)
    found = measure(machine, measure_all=True, rounds=2)
    assert len(machine.turns) == 2 * 143 and not found['fits']


def test_small_spaces_are_timed_whole(measure):
    machine = Machine(additive)
    found = measure(machine, space=SubnetSpace([8, 16], [3, 4, 5]), rounds=2)
    assert len(machine.turns) == 2 * 6 and not found['fits']


def test_a_few_held_out_subnets_are_too_few(measure):
    machine = Machine(additive)
    found = measure(machine, space=SubnetSpace([8, 12, 16], range(6, 19)), rounds=1)
    assert found['fits']['torch-cpu-b1']['latency']['count'] >= 5


@pytest.mark.parametrize('stop_after', [1, 60, 164])
def test_interrupted_it_goes_on(measure, stop_after):
    machine = Machine(additive)
    machine.stop_after = stop_after
    with pytest.raises(KeyboardInterrupt):
        measure(machine, rounds=3)
    machine.stop_after = None
    found = measure(machine, rounds=3)
    assert len(machine.turns) == 3 * 55, 'no turn is taken twice'
    assert found == measure(Machine(additive), rounds=3)


def test_threads_are_as_before(measure):
    before = torch.get_num_threads()
    seen = []
    machine = Machine(lambda subnet: seen.append(torch.get_num_threads()) or additive(subnet))
    measure(machine, threads=before + 1, rounds=1)
    assert set(seen) == {before + 1} and torch.get_num_threads() == before


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(runtimes=()), 'runtimes must be some of torch, onnxruntime'),
        (dict(runtimes=('torch', 'torch')), 'each once'),
        (dict(runtimes=('tvm',)), "runtime 'tvm' is not one of"),
        (dict(devices=('gpu',)), "device 'gpu' is not one of"),
        (dict(batches=(0,)), 'batch 0 is not a whole number'),
        (dict(batches=()), 'batches must be'),
        (dict(batches=(1, 1)), 'each once'),
        (dict(threads=0), 'threads 0 is not'),
        (dict(threads=10**6), r'threads 1000000 are more than the \d+ processors'),
        (dict(rounds=0), 'rounds 0 is not'),
        (dict(runtimes='torch'), r"runtimes must be a list or a tuple, such as \('torch',\); got 'torch'"),
        (dict(devices='cuda'), 'devices must be a list or a tuple'),
        (dict(batches=8), 'batches must be a list or a tuple'),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        MeasureSettings(**settings).check()


def test_results_of_other_settings_are_refused(tmp_path):
    unfinished = Unfinished(tmp_path, {'checkpoint': 'abc', 'batches': (1, 8)})
    unfinished.put(['knn', '8x3'], 0.5, write=True)
    again = Unfinished(tmp_path, {'checkpoint': 'abc', 'batches': (1, 8)})
    assert again.get('knn', '8x3') == 0.5 and again.get('knn', '8x4') is None and again.get('linear', '8x3') is None
    with pytest.raises(ValueError, match="checkpoint was 'abc', is 'abd'"):
        Unfinished(tmp_path, {'checkpoint': 'abd', 'batches': (1, 8)})
    (tmp_path / NAME).write_text(json.dumps([1]))
    with pytest.raises(ValueError, match='found another file'):
        Unfinished(tmp_path, {'checkpoint': 'abc'})


def test_nothing_found_is_nothing_written(tmp_path):
    unfinished = Unfinished(tmp_path / 'new', {})
    unfinished.write()
    assert not (tmp_path / 'new').exists()
