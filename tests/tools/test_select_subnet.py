import json
import subprocess
import sys
from pathlib import Path

import pytest
from scorecards import make_card

from poa_mm.checkpoint import file_sha256
from poa_mm.elastic import SubnetSpace

sys.path.insert(0, str(Path(__file__).parents[2] / 'tools'))
import select_subnet as tool


@pytest.fixture
def write(tmp_path):
    """Writes a scorecard and gives its path."""

    def write(**entries):
        card = make_card(protocols=('knn', 'linear'), conditions=('torch-cpu-b1', 'torch-cpu-b8'))
        path = tmp_path / 'scorecard.json'
        path.write_text(json.dumps(card | entries))
        return str(path)

    return write


@pytest.fixture
def of_supernet(write, supernet_file):
    """A scorecard of a checkpoint that is there."""
    checkpoint = supernet_file('vit')
    space = SubnetSpace([32, 48, 64], [2, 3, 4])
    origin = dict(checkpoint=str(checkpoint), checkpoint_sha256=file_sha256(checkpoint))
    return write(**make_card(space, **origin)), checkpoint


def test_says_the_best_what_it_costs_and_the_runners_up(write, capsys):
    limits = ['--max-latency', '0.7', '--max-params', '600k', '--max-size', '2.2MB', '--max-memory', '9MB']
    assert tool.main([write(), *limits]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith('96x4: knn ') and 'parameters 0.538 M' in lines[0]
    assert lines[1].startswith('against the largest, 96x6: -')
    assert len(lines) == 7 and all(line.startswith('runner-up ') for line in lines[2:])


def test_other_scores_and_conditions(write, capsys):
    path = write()
    assert tool.main([path, '--by', 'linear', '--on', 'torch-cpu-b8', '--max-latency', '1.4']) == 0
    assert 'linear' in capsys.readouterr().out.splitlines()[0]


def test_nothing_fits(write, capsys):
    assert tool.main([write(), '--max-params', '100k']) == 1
    out = capsys.readouterr().out
    assert out.startswith('nothing fits') and '48x3: parameters 0.131 M, 0.0309 M (30.9 %) too much' in out


def test_verified_choice_is_named_with_what_was_found(of_supernet, capsys, monkeypatch):
    path, _ = of_supernet
    milliseconds = iter([30.0] * 5 + [20.0] * 5)
    monkeypatch.setattr('poa_mm.evaluation.verification.time_visit', lambda run: [next(milliseconds) / 1000] * 2)
    assert tool.main([path, '--max-latency', '25', '--verify']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith('note: the scorecard is of another machine: processor was a processor')
    assert lines[1].startswith('timed again: 64x4 takes 30 ms') and lines[1].endswith('over the limit, so the next one')
    assert lines[2].startswith('timed again: 64x3 takes 20 ms, measured before: ')
    assert lines[3].startswith('64x3: ') and 'latency 20 ms' in lines[3]
    assert not any(line.startswith('runner-up 64x4') for line in lines)


def test_nothing_fits_any_more(of_supernet, capsys, monkeypatch):
    path, _ = of_supernet
    monkeypatch.setattr('poa_mm.evaluation.verification.time_visit', lambda run: [9.0])
    assert tool.main([path, '--max-latency', '25', '--verify']) == 1
    assert capsys.readouterr().out.splitlines()[-1] == 'nothing fits any more'


def test_the_rest_goes_to_the_exporter(of_supernet, monkeypatch):
    path, checkpoint = of_supernet
    calls = []

    def run(command):
        calls.append(list(map(str, command)))
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(subprocess, 'run', run)
    assert tool.main([path, '--max-params', '200k', '--then', '--to', 'timm', 'onnx', '-o', 'out']) == 3
    (command,) = calls
    assert command[1].endswith('tools/export_subnet.py')
    assert command[2:] == [str(checkpoint), '--subnet', '48x4', '--to', 'timm', 'onnx', '-o', 'out']


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['none.json'], 'none.json'),
        ([__file__], 'expected the JSON of a scorecard'),
        (['CARD', '--max-latency', 'fast'], "latency 'fast'"),
        (['CARD', '--max-params', '30MB'], "parameters '30MB'"),
        (['CARD', '--max-size', '60'], "file size '60'"),
        (['CARD', '--by', 'f1'], "score 'f1' is not in the scorecard"),
        (['CARD', '--on', 'torch-cuda-b1'], "condition 'torch-cuda-b1' is not in the scorecard"),
        (['CARD', '--verify'], 'supernet.pth, the checkpoint of the scorecard, is not there'),
        (['CARD', '--then', '--to', 'timm'], 'is not there; name it with --checkpoint'),
        (['CARD', '--checkpoint', 'none.pth'], 'none.pth: there is no such file'),
        (['CARD', '--checkpoint', __file__], 'the scorecard is of another checkpoint: SHA-256 0000'),
    ],
)
def test_what_users_get_wrong_is_one_line(arguments, message, write, capsys, tmp_path):
    path = write()
    before = sorted(tmp_path.iterdir())
    assert tool.main([path if argument == 'CARD' else argument for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert err.startswith('select_subnet: error: ') and message in err and err.count('\n') == 1
    assert not out and sorted(tmp_path.iterdir()) == before


def test_then_needs_something(write, capsys):
    with pytest.raises(SystemExit) as stop:
        tool.main([write(), '--then'])
    assert stop.value.code == 2 and '--then needs arguments' in capsys.readouterr().err
