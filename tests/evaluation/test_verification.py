import json

import pytest
from scorecards import make_card

from poa_mm.checkpoint import CheckpointError, file_sha256
from poa_mm.elastic import SubnetSpace
from poa_mm.evaluation import verification
from poa_mm.evaluation.verification import find_checkpoint, other_machine, verify

CONDITION = 'torch-cpu-b2'
SPACE = SubnetSpace([32, 48, 64], [2, 3, 4])


@pytest.fixture
def checkpoint(supernet_file):
    return supernet_file('vit')


@pytest.fixture
def card(checkpoint):
    return make_card(
        SPACE,
        conditions=[CONDITION],
        predicted=['48x3'],
        checkpoint=str(checkpoint),
        checkpoint_sha256=file_sha256(checkpoint),
    )


@pytest.fixture
def times(monkeypatch):
    """Milliseconds that subnets take, in the order in which they are timed."""

    def set_times(*milliseconds):
        left = iter([ms for ms in milliseconds for _ in range(verification.VISITS)])
        monkeypatch.setattr(verification, 'time_visit', lambda run: run() and [next(left) / 1000] * 2)

    return set_times


def test_the_first_that_fits_is_the_last_that_is_timed(card, checkpoint, times):
    times(30, 20.5, 19, 1)
    ranked = card['subnets'][::-1]
    before = json.dumps(card)
    found = list(verify(card, checkpoint, ranked, dict(latency=20), CONDITION))
    assert [each.row['subnet'] for each in found] == [row['subnet'] for row in ranked[:3]]
    assert [each.fits for each in found] == [False, False, True]
    cost = found[-1].row['costs'][CONDITION]
    assert cost['kind'] == 'measured' and cost['median_ms'] == pytest.approx(19)
    assert cost['images_per_s'] == pytest.approx(2 / 0.019)
    assert found[-1].before is ranked[2] and json.dumps(card) == before, 'the scorecard is as it was'


def test_memory_is_measured_again_too(card, checkpoint, times):
    times(1, 1)
    row = card['subnets'][0]
    (found,) = verify(card, checkpoint, [row], dict(memory=1e9), CONDITION)
    peak = found.row['costs'][CONDITION]['peak_memory']
    assert found.fits and peak > 200_000
    (found,) = verify(card, checkpoint, [row], dict(memory=peak - 1), CONDITION)
    assert not found.fits


def test_real_time_is_taken(card, checkpoint):
    (found,) = verify(card, checkpoint, card['subnets'][:1], {}, CONDITION)
    assert found.fits and found.row['costs'][CONDITION]['median_ms'] > 0


def test_another_checkpoint_is_refused(card, checkpoint, supernet_file, tmp_path):
    assert find_checkpoint(card) == checkpoint
    assert find_checkpoint(card, checkpoint) == checkpoint
    assert find_checkpoint({**card, 'checkpoint': str(tmp_path / 'gone.pth')}) is None
    with pytest.raises(CheckpointError, match='there is no such file'):
        find_checkpoint(card, tmp_path / 'gone.pth')
    with pytest.raises(CheckpointError, match=f'of another checkpoint: SHA-256 {card["checkpoint_sha256"]}, that of'):
        find_checkpoint(card, supernet_file('swin'))
    with pytest.raises(CheckpointError, match='of another checkpoint'):
        find_checkpoint({**card, 'checkpoint_sha256': '1' * 64})


def test_another_machine_is_told(card):
    assert [text.split(' was ')[0] for text in other_machine(card, CONDITION)] == ['processor', 'torch']
    here = {**card, 'machine': verification.describe_machine(['cpu'])}
    assert other_machine(here, CONDITION) == []
