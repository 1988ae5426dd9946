import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / 'tools'))
import study as tool

from poa_mm.study import ROWS
from poa_mm.study.report import EVIDENCE, PAGE, WARM_PAGE


@pytest.fixture
def run(monkeypatch):
    """The command in this process; what would be trained, and which pages rebuilt, is noted."""
    calls = []
    monkeypatch.setattr(tool, 'run_study', lambda *args: calls.append(('run', *args)))
    monkeypatch.setattr(tool, 'write_report', lambda *args: calls.append(('report', *args)) or [])

    def main(*words):
        monkeypatch.setattr(sys, 'argv', ['study.py', *map(str, words)])
        return tool.main(), calls

    return main


def test_all_of_it(run):
    code, (study, *reports) = run('--jobs', 2)
    assert code == 0
    assert study == ('run', Path('work_dirs/study'), EVIDENCE, None, [0, 1, 2], None, 2)
    assert reports == [('report', EVIDENCE, page) for page in (PAGE, WARM_PAGE)]


def test_one_new_run(run, tmp_path):
    json = tmp_path / 'mine.json'
    words = ['--only', 'poa', '--seeds', 7, '--data', 'fashion_mnist', '--work-dir', tmp_path, '--evidence', json]
    _, (study, report) = run(*words)
    assert study == ('run', tmp_path, json, ['poa'], [7], ['fashion_mnist'], 1)
    assert report == ('report', json, tmp_path / 'mine.md')


def test_a_report_trains_nothing(run):
    assert {name for name, *_ in run('--report')[1]} == {'report'}


def test_mistakes_are_one_line(run, capsys, tmp_path, monkeypatch):
    code, calls = run('--jobs', 1, '--evidence', tmp_path / 'x.json')
    assert code == 0
    calls.clear()
    monkeypatch.setattr(tool, 'run_study', Mock(side_effect=ValueError('jobs 0\nis below 1')))
    assert run('--jobs', 0)[0] == 2
    assert capsys.readouterr().err == 'study: error: jobs 0 is below 1\n'
    assert not calls


@pytest.mark.parametrize('words', [['--only', 'pao'], ['--data', 'digits'], ['--report', '--smoke'], ['--seeds', 'a']])
def test_what_does_not_exist_is_refused(run, words, capsys):
    with pytest.raises(SystemExit) as stop:
        run(*words)
    assert stop.value.code == 2
    assert 'study.py: error' in capsys.readouterr().err


def test_the_smoke_run_leaves_nothing(run, monkeypatch, capsys):
    folders = []
    monkeypatch.setattr(tool, 'smoke', lambda folder: folders.append(folder) or [1, 2])
    assert run('--smoke') == (0, [])
    assert not folders[0].exists()
    assert capsys.readouterr().out == f'smoke: 2 networks scored, of all {len(ROWS)} rows\n'
