import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from poa_mm.engine import work_dir as module
from poa_mm.engine.work_dir import LOCK, WorkDir, WorkDirError, network_file_system

HOLD = """
import sys, time, importlib.util, types
sys.path.insert(0, sys.argv[2])
from poa_mm.engine.work_dir import WorkDir
with WorkDir(sys.argv[1]):
    print('held', flush=True)
    sys.stdin.read()
"""


def lock(folder, **owner):
    """What another run has left, or leaves alone."""
    me = module._me()
    (folder / LOCK).write_text(json.dumps(me | owner))


@pytest.fixture(scope='module')
def holder(tmp_path_factory):
    """Another process that holds a folder."""
    folder = tmp_path_factory.mktemp('held')
    root = str(Path(__file__).parents[2])
    command = [sys.executable, '-c', HOLD, str(folder), root]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while 'held' not in process.stdout.readline():
        assert process.poll() is None
    yield folder, process
    process.kill()
    process.wait()


def test_one_after_the_other(tmp_path):
    for _ in range(2):
        with WorkDir(tmp_path / 'a' / 'b'):
            owner = json.loads((tmp_path / 'a' / 'b' / LOCK).read_text())
            assert (owner['host'], owner['process']) == (socket.gethostname(), os.getpid())
        assert not list((tmp_path / 'a' / 'b').iterdir())


def test_not_two_of_one_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'link').symlink_to(tmp_path)
    with WorkDir('.'):
        for other in (tmp_path, tmp_path / 'link'):
            with pytest.raises(WorkDirError, match='another run of this process'), WorkDir(other):
                pass
        with WorkDir(tmp_path / 'other'):
            pass
    with WorkDir(tmp_path):
        pass


def test_let_go_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), WorkDir(tmp_path):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match='file'), WorkDir(tmp_path / 'file'):
        pass


def test_another_process_is_named_and_its_end_noticed(holder):
    folder, process = holder
    with pytest.raises(WorkDirError, match=rf'another run: process {process.pid} on {socket.gethostname()}, since 2'):
        WorkDir(folder).__enter__()
    assert json.loads((folder / LOCK).read_text())['process'] == process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (folder / LOCK).exists()
    with WorkDir(folder):
        assert json.loads((folder / LOCK).read_text())['process'] == os.getpid()


@pytest.mark.parametrize('text', ['', 'no json', '[]', '{"process": "1"}', '\0' * 20])
def test_a_file_that_says_nothing(tmp_path, text):
    (tmp_path / LOCK).write_text(text)
    with WorkDir(tmp_path):
        pass


def test_a_folder_from_another_machine_on_a_disk_of_this_one(tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'network_file_system', lambda folder: None)
    lock(tmp_path, host='elsewhere', boot='another')
    with WorkDir(tmp_path):
        pass


@pytest.fixture
def shared(monkeypatch):
    heard = []
    monkeypatch.setattr(module, 'network_file_system', lambda folder: 'nfs4')
    monkeypatch.setattr(module, '_say', heard.append)
    return heard


def test_on_a_network_the_other_machine_shows_that_it_lives(tmp_path, shared):
    lock(tmp_path, host='gpu07', process=1, boot='another')
    with pytest.raises(WorkDirError, match='process 1 on gpu07'):
        WorkDir(tmp_path).__enter__()
    old = (tmp_path / LOCK).stat().st_mtime - module.DEAD - 5
    os.utime(tmp_path / LOCK, (old, old))
    with WorkDir(tmp_path):
        pass
    assert 'process 1 on gpu07' in shared[0] and 'taken over' in shared[0]
    assert 'network file system (nfs4)' in shared[1]
    assert not list(tmp_path.iterdir())


def test_signs_of_life(tmp_path, shared, monkeypatch):
    monkeypatch.setattr(module, 'SIGN_OF_LIFE', 0.02)
    with WorkDir(tmp_path):
        os.utime(tmp_path / LOCK, (1, 1))
        for _ in range(500):
            if (tmp_path / LOCK).stat().st_mtime > 1:
                break
            module.time.sleep(0.02)
        assert (tmp_path / LOCK).stat().st_mtime > 1


def test_without_locks_processes_are_looked_for(tmp_path, monkeypatch, shared):
    def unsupported(self):
        return os.open(self.path, os.O_RDWR | os.O_CREAT), False

    monkeypatch.setattr(WorkDir, '_open', unsupported)
    parent = os.getppid()
    lock(tmp_path, process=parent, birth=module._birth(parent))
    with pytest.raises(WorkDirError, match=f'process {parent}'):
        WorkDir(tmp_path).__enter__()
    lock(tmp_path, process=parent, birth='0')  # the number was given again
    with WorkDir(tmp_path):
        pass
    lock(tmp_path, process=2**22 + 5)
    with WorkDir(tmp_path):
        pass


def test_kinds_of_file_systems(tmp_path, monkeypatch):
    assert network_file_system(Path('/proc')) is None
    table = f'1 1 0:1 / / rw - overlay o rw\n2 1 0:2 / {tmp_path}/my\\040disk rw shared:1 - nfs4 host:/x rw\n'
    monkeypatch.setattr(Path, 'read_text', lambda self: table)
    (tmp_path / 'my disk' / 'run').mkdir(parents=True)
    assert network_file_system(tmp_path / 'my disk' / 'run') == 'nfs4'
    assert network_file_system(tmp_path) is None
