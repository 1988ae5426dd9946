import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest

from poa_mm.engine import launch, memory

FAULTS = """
import resource
import sys
import torch
from poa_mm.engine.memory import keep_freed_memory
if sys.argv[1] == 'keep' and not keep_freed_memory():
    sys.exit(77)
def allocate():
    parts = [torch.ones(2**21) for _ in range(16)]  # 8 MiB each
allocate()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
allocate()
pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(pages * resource.getpagesize() // 2**20)
"""


def faults(mode):
    done = subprocess.run([sys.executable, '-c', FAULTS, mode], capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip('the C library is not glibc')
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def test_memory_that_was_freed_needs_no_new_pages():
    assert faults('keep') < 32  # of 128 MiB
    assert faults('default') > 64  # else there is nothing to be gained


@pytest.mark.parametrize('library', [SimpleNamespace(), None])
def test_other_libraries_are_left_as_they_are(monkeypatch, library):
    def load(name):
        if library is None:
            raise OSError('no such library')
        return library

    monkeypatch.setattr(ctypes, 'CDLL', load)
    assert memory.keep_freed_memory() is False


@pytest.mark.parametrize(('gpu', 'expected'), [(False, 1), (True, 0)])
def test_runs_without_gpu_keep_it(monkeypatch, gpu, expected):
    calls = []
    monkeypatch.setattr(launch.torch.cuda, 'is_available', lambda: gpu)
    monkeypatch.setattr(launch, 'keep_freed_memory', lambda: calls.append(True))
    launch.prepare(launch.Config(dict()), 'none')
    assert len(calls) == expected
