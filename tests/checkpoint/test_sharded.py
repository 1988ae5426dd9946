import os
import pickle
import shutil

import pytest
import torch
from torch.testing import assert_close

from poa_mm.checkpoint import CheckpointError, check_integrity, read_checkpoint, sharded
from poa_mm.checkpoint.atomic_files import CheckpointWriteError, remove_temporaries
from poa_mm.checkpoint.sharded import dcp, save_sharded
from poa_mm.deploy.extract import extract_subnets
from poa_mm.engine.resume import find_resumable

pytestmark = pytest.mark.skipif(dcp is None, reason=f'torch {torch.__version__} has no sharded checkpoints')


class Command:
    """Pickles as a call of ``os.system``."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f'touch {self.marker}',)


def make(number=1.0):
    return dict(
        state_dict={'a.weight': torch.full((3, 2), number), 'count': torch.tensor(4)},
        optimizer=dict(
            state={0: {'step': torch.tensor(2.0), 'exp_avg': torch.ones(3, 2)}}, param_groups=[dict(params=[0])]
        ),
        meta=dict(iter=7),
    )


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / 'iter_7.pth'
    save_sharded(make(), folder)
    return folder


def shard_of(folder):
    (shard,) = folder.glob('*.safetensors')
    return shard


def test_reads_what_was_written(folder):
    found = read_checkpoint(folder)
    assert_close(found['state_dict'], make()['state_dict'], rtol=0, atol=0)
    assert found['meta'] == dict(iter=7)
    assert found['optimizer']['param_groups'] == [dict(params=[0])]
    described = read_checkpoint(folder, weights=False)
    assert {name: tensor.shape for name, tensor in described['state_dict'].items()} == {
        'a.weight': (3, 2),
        'count': (),
    }
    assert all(tensor.is_meta for tensor in described['state_dict'].values())
    assert described['optimizer']['state'].keys() == {0}
    assert described['optimizer']['state'][0].keys() == {'step', 'exp_avg'}
    check_integrity(folder)


def test_replaces_what_is_there(folder):
    save_sharded(make(2.0), folder)
    assert read_checkpoint(folder)['state_dict']['a.weight'].unique() == 2
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_nothing_is_executed(folder, tmp_path):
    evil = pickle.dumps(Command(tmp_path / 'marker'))
    (folder / '.metadata').write_bytes(evil)  # where DCP's usual format has a pickle
    (folder / '__0_0.distcp').write_bytes(evil)
    read_checkpoint(folder)
    shard = shard_of(folder)
    shard.write_bytes(evil)
    with pytest.raises(CheckpointError, match='safetensors'):
        read_checkpoint(folder)
    torch.save({'files': {}, 'x': Command(tmp_path / 'marker')}, folder / 'checkpoint.pth')
    with pytest.raises(CheckpointError, match='was not run'):
        read_checkpoint(folder)
    assert not (tmp_path / 'marker').exists()


@pytest.mark.parametrize('weights', [True, False])
def test_lost_shard(folder, weights):
    shard_of(folder).unlink()
    with pytest.raises(CheckpointError, match='lacks shard'):
        read_checkpoint(folder, weights)


def test_resume_falls_back_from_a_damaged_shard(folder):
    save_sharded(make(), folder.with_name('iter_9.pth'))
    assert find_resumable(folder.parent) == folder.with_name('iter_9.pth')
    shard = shard_of(folder.with_name('iter_9.pth'))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert find_resumable(folder.parent) == folder


def test_disk_full(folder, monkeypatch):
    def write(path, chunks):
        raise CheckpointWriteError(28, 'No space left on device', str(path))

    monkeypatch.setattr(sharded, 'write_file', write)
    with pytest.raises(CheckpointWriteError, match='No space left'):
        save_sharded(make(2.0), folder)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert read_checkpoint(folder)['state_dict']['a.weight'].unique() == 1


def test_what_a_killed_run_has_left_is_no_checkpoint(folder):
    left = folder.with_name('.iter_9.pth.tmp')
    shutil.copytree(folder, left)
    assert find_resumable(folder.parent) == folder
    remove_temporaries(folder.parent)
    assert not left.exists()


def test_extraction_equals_that_of_a_file(supernet_file, tmp_path):
    file = supernet_file('vit')
    folder = tmp_path / 'poa.pth'
    save_sharded(read_checkpoint(file), folder)
    found, expected = (
        extract_subnets(checkpoint, ['32x2'], tmp_path / name)
        for name, checkpoint in (('found', folder), ('expected', file))
    )
    weights = [tmp_path / name / 'poa_32x2.safetensors' for name in ('found', 'expected')]
    found, expected = (read_checkpoint(path)['state_dict'] for path in weights)
    assert_close(found, expected, rtol=0, atol=0)
