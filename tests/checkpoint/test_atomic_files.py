import errno
import io
import os
import random
import signal
import time
from multiprocessing import get_context

import pytest
import torch
from mmengine.fileio import get_file_backend

from poa_mm.checkpoint import CheckpointError, atomic_files, check_integrity, file_sha256, read_checkpoint
from poa_mm.checkpoint.atomic_files import CheckpointWriteError, remove_temporaries, write_file
from poa_mm.checkpoint.sealing import sealed
from poa_mm.engine.resume import find_resumable


def archive(**tensors):
    file = io.BytesIO()
    torch.save({'state_dict': tensors}, file)
    return file.getvalue()


@pytest.fixture
def backend():
    return get_file_backend('some/folder', backend_args=dict(backend='atomic'))


@pytest.fixture
def path(tmp_path, backend):
    backend.put(archive(a=torch.arange(50.0)), tmp_path / 'new' / 'iter_1.pth')
    return tmp_path / 'new' / 'iter_1.pth'


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def test_everybody_can_read_a_sealed_file(path):
    assert names(path.parent) == ['iter_1.pth']
    check_integrity(path)
    for read in (read_checkpoint(path), torch.load(path, weights_only=True)):
        assert torch.equal(read['state_dict']['a'], torch.arange(50.0))
    assert path.read_bytes()[-64:].decode() != file_sha256(path)  # that of all before it


@pytest.mark.parametrize('part', range(20))
def test_one_flipped_bit_is_noticed(path, part):
    data = bytearray(path.read_bytes())
    size = len(data) - 64 - 14  # without the seal's name, beside which the checks of a file without seal are left
    data[part * size // 20] ^= 1 << part % 8
    path.write_bytes(data)
    for read in (check_integrity, read_checkpoint):
        with pytest.raises(CheckpointError, match=r'iter_1\.pth: is damaged: its SHA-256'):
            read(path)


def test_a_flipped_bit_in_the_digest_is_noticed(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match='SHA-256'):
        check_integrity(path)


def test_files_without_seal_are_checked_too(tmp_path):
    path = tmp_path / 'a.pth'
    path.write_bytes(archive(a=torch.arange(50.0)))
    check_integrity(path)
    data = bytearray(path.read_bytes())
    data[data.index(torch.arange(50.0).numpy().tobytes()) + 9] ^= 4
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r'CRC-32 of .*data/0'):
        check_integrity(path)


@pytest.mark.parametrize('data', [b'', b'PK', b'text', archive(a=torch.ones(9))[:-100]])
def test_what_is_no_archive(tmp_path, data):
    (tmp_path / 'a.pth').write_bytes(data)
    with pytest.raises(CheckpointError, match=r'a\.pth: expected a checkpoint'):
        check_integrity(tmp_path / 'a.pth')


def test_other_data_is_written_as_it_is(tmp_path, backend):
    assert sealed(b'{}') == [b'{}']
    backend.put(b'{}', tmp_path / 'a.json')
    backend.put_text('ä', tmp_path / 'a.txt')
    assert (tmp_path / 'a.json').read_bytes() == b'{}'
    assert (tmp_path / 'a.txt').read_text(encoding='utf-8') == 'ä'


@pytest.mark.parametrize('fails', ['fsync', 'replace'])
def test_full_disk(path, backend, monkeypatch, fails):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = path.read_bytes()
    monkeypatch.setattr(atomic_files.os, fails, full)
    for name in ('iter_1.pth', 'iter_2.pth'):
        with pytest.raises(CheckpointWriteError, match=rf'No space left on device.*earlier.*{name}') as error:
            backend.put(archive(a=torch.zeros(50)), path.with_name(name))
        assert error.value.errno == errno.ENOSPC
    assert names(path.parent) == ['iter_1.pth']
    assert path.read_bytes() == before


def test_interrupted(path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic_files.os, 'fsync', interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_file(path.with_name('iter_2.pth'), [b'data'])
    assert names(path.parent) == ['iter_1.pth']


def test_temporaries_of_killed_runs(path):
    path.with_name('.iter_2.pth.tmp').write_bytes(b'half')
    path.with_name('.other.tmp').write_bytes(b'not ours')
    assert find_resumable(path.parent) == path
    remove_temporaries(path.parent)
    assert names(path.parent) == ['.other.tmp', 'iter_1.pth']


def _write_forever(folder, started):
    backend = get_file_backend(folder, backend_args=dict(backend='atomic'))
    data = archive(a=torch.rand(100_000))
    for step in range(1, 100_000):
        backend.put(data, folder / f'iter_{step}.pth')
        backend.put_text(str(folder / f'iter_{step}.pth'), folder / 'last_checkpoint')
        (folder / f'iter_{step - 1}.pth').unlink(missing_ok=True)
        started.set()


def test_killed_in_20_writes(tmp_path):
    """Almost all of the time goes into writing, so this is where it dies."""
    context = get_context('fork')
    chance = random.Random(0)
    half_written = 0
    for _ in range(20):
        started = context.Event()
        writer = context.Process(target=_write_forever, args=(tmp_path, started), daemon=True)
        writer.start()
        assert started.wait(30)
        time.sleep(chance.uniform(0, 0.02))
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        half_written += len(list(tmp_path.glob('.*.tmp')))
        assert len(read_checkpoint(find_resumable(tmp_path))['state_dict']['a']) == 100_000
        for path in tmp_path.glob('*.pth'):
            check_integrity(path)
        remove_temporaries(tmp_path)
    assert half_written
