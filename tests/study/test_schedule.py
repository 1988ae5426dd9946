import threading

import pytest

from poa_mm.elastic import SubnetSpace
from poa_mm.study import Entry, Unit, read_evidence, run_study, schedule

SPACE = SubnetSpace([48, 64, 96], [2, 3, 4])


@pytest.fixture(autouse=True)
def no_configs(monkeypatch):
    monkeypatch.setattr(schedule, 'space_of', lambda cfg: SPACE)
    monkeypatch.setattr(schedule.Config, 'fromfile', lambda path: path)


def entry(unit):
    return Entry(unit.row, unit.data, unit.seed, unit.subnet, 0.5, None, None, None, 1, 1.0, 'm', 'c')


def worker(tmp_path, done, fail=()):
    """Does nothing but to leave a result, as real work does."""
    from poa_mm.study.work import RESULT, write_entries

    def do(unit):
        done.append(unit)
        if unit.row in fail:
            raise RuntimeError(f'{unit.row} failed')
        folder = unit.folder(tmp_path / 'work')
        folder.mkdir(parents=True, exist_ok=True)
        write_entries(folder / RESULT, [entry(unit)])
        return [entry(unit)]

    return do


def run(tmp_path, done, fail=(), **options):
    options = dict(rows=['poa', 'alone', 'no_es2'], seeds=[0, 1], configs={'a': 'a.py'}) | options
    return run_study(tmp_path / 'work', tmp_path / 'evidence.json', do=worker(tmp_path, done, fail), **options)


def test_all_is_done_and_written_down(tmp_path):
    done = []
    entries = run(tmp_path, done)
    assert len(done) == len(entries) == 10
    assert sorted(entries, key=lambda e: e.key) == read_evidence(tmp_path / 'evidence.json')


def test_nothing_is_done_twice(tmp_path):
    done = []
    with pytest.raises(RuntimeError, match='no_es2 failed'):
        run(tmp_path, done, fail=['no_es2'])
    first = len(done)
    assert done[-1].row == 'no_es2'
    assert len(read_evidence(tmp_path / 'evidence.json')) == first - 1
    (tmp_path / 'evidence.json').unlink()
    entries = run(tmp_path, done)
    assert len(done) == 10 + 1  # what had failed, once more
    assert entries[0] in read_evidence(tmp_path / 'evidence.json')
    run(tmp_path, done)
    assert len(done) == 11


def test_the_second_data_set_has_the_main_rows_unless_others_are_asked_for(tmp_path):
    done = []
    run(tmp_path, done, rows=None, seeds=[0], configs={'a': 'a.py', 'emoji': 'b.py'})
    assert {unit.row for unit in done if unit.data == 'a'} == set(schedule.ROWS)
    assert {unit.row for unit in done if unit.data == 'emoji'} == set(schedule.USUAL_ROWS['emoji'])
    done.clear()
    run(tmp_path, done, rows=['no_es1'], seeds=[0], configs={'emoji': 'b.py'})
    assert [unit.row for unit in done] == ['no_es1']


def test_several_are_done_side_by_side(tmp_path):
    together = threading.Barrier(2, timeout=20)

    def do(unit):
        together.wait()
        return [entry(unit)]

    units = run_study(tmp_path / 'work', tmp_path / 'e.json', ['poa'], [0, 1], jobs=2, configs={'a': 'a.py'}, do=do)
    assert len(units) == 2


def test_others_are_finished_when_one_fails(tmp_path):
    failed = threading.Event()

    def do(unit):
        if unit.row == 'poa':
            failed.set()
            raise RuntimeError('poa failed')
        failed.wait(20)
        return [entry(unit)]

    with pytest.raises(RuntimeError, match='poa failed'):
        run_study(tmp_path / 'work', tmp_path / 'e.json', ['poa', 'no_es2'], [0], jobs=2, configs={'a': 'a.py'}, do=do)
    assert [found.row for found in read_evidence(tmp_path / 'e.json')] == ['no_es2']


def test_slices_wait_for_the_network_that_is_being_trained():
    running = {object(): (Unit('a', 'alone', 0, '96x4'), 0.0)}
    left = [Unit('a', 'slices', 0), Unit('a', 'poa', 1)]
    assert schedule._next(left, running) == left[1]
    assert schedule._next(left[:1], running) is None
    assert schedule._next(left, {object(): (Unit('a', 'alone', 1, '96x4'), 0.0)}) == left[0]


def test_the_estimate_counts_what_is_left():
    durations = {'a/poa/None': 600.0}
    left = [Unit('a', 'poa', 1), Unit('a', 'poa', 2)]
    assert schedule._estimate(durations, left, {}, jobs=2) == '2 more to begin, about 0:10:00 left'
    assert schedule._estimate({}, left, {}, jobs=2) == '2 more to begin'


@pytest.mark.parametrize('options, complaint', [(dict(jobs=0), 'jobs 0'), (dict(rows=['x']), "'x'")])
def test_what_cannot_be_is_refused_before_anything_runs(tmp_path, options, complaint):
    done = []
    with pytest.raises(ValueError, match=complaint):
        run(tmp_path, done, **options)
    assert not done


def test_work_in_a_process_of_its_own(tmp_path, monkeypatch):
    """The command is given what the unit is, one thread, and the log; a failure says what the log says."""
    unit, calls = Unit('a', 'alone', 3, '96x4'), []
    finish = worker(tmp_path, [])

    def call(command, stdout, stderr, env):
        calls.append((command, env))
        print('Traceback\nout of memory', file=stdout, flush=True)
        if len(calls) > 1:
            finish(unit)
        return len(calls) % 2

    monkeypatch.setattr(schedule.subprocess, 'call', call)
    work_dir = tmp_path / 'work'
    with pytest.raises(RuntimeError, match=r'a alone-96x4-seed3 failed; (?s:.*)out of memory'):
        schedule.in_process(unit, work_dir)
    assert schedule.in_process(unit, work_dir) == [entry(unit)]
    command, env = calls[0]
    assert command[1:] == ['-m', 'poa_mm.study.schedule', str(work_dir), 'a', 'alone', '3', '96x4']
    assert env['OMP_NUM_THREADS'] == '1'
