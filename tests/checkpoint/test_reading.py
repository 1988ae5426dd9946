import io
import os
import pickle
import zipfile
from collections import OrderedDict

import pytest
import torch
from mmengine.config import Config
from safetensors.torch import save_file

from poa_mm.checkpoint import (
    CheckpointError,
    check_finite,
    file_sha256,
    read_checkpoint,
)


def test_reads_what_training_writes(save, content):
    read = read_checkpoint(save(content))
    assert list(read) == list(content)
    assert read['poa'] == content['poa']
    assert read['meta'] == {'epoch': 1, 'cfg': 'a = 1', 'dataset_meta': {'classes': ('a', 'b')}, 'seen': {1, 2}}
    assert type(read['meta']['dataset_meta']) is dict
    assert list(read['state_dict']) == list(content['state_dict'])
    assert all(torch.equal(tensor, read['state_dict'][name]) for name, tensor in content['state_dict'].items())
    assert set(read['message_hub']['log_scalars']) == {'train/loss', 'train/lr'}  # names, without the numbers


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_reads_all_kinds_of_tensors(save, protocol):
    tensors = OrderedDict(
        param=torch.nn.Parameter(torch.rand(2, 3)),
        half=torch.rand(3).half(),
        bfloat=torch.rand(3).bfloat16(),
        flag=torch.tensor([True, False]),
        scalar=torch.tensor(7),
        view=torch.rand(4, 4)[1:, ::2],
    )
    read = read_checkpoint(save({'state_dict': tensors, 'size': torch.Size([1]), 'type': torch.bfloat16, 'none': None}))
    assert all(torch.equal(tensor, read['state_dict'][name]) for name, tensor in tensors.items())
    assert (read['size'], read['type'], read['none']) == (torch.Size([1]), torch.bfloat16, None)
    assert read_checkpoint(save(dict(tensors), pickle_protocol=protocol))['scalar'] == 7


def test_reads_safetensors(tmp_path):
    save_file({'a': torch.ones(2)}, tmp_path / 'a.safetensors', metadata={'subnet': '16x2'})
    read = read_checkpoint(tmp_path / 'a.safetensors')
    assert torch.equal(read['state_dict']['a'], torch.ones(2))
    assert read['meta'] == {'subnet': '16x2'}


class Command:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def evil(marker):
    """Objects whose unpickling would make the file ``marker``."""
    inner = io.BytesIO()
    torch.save(Command(os.system, f'touch {marker}'), inner)
    return {
        'os.system': Command(os.system, f'touch {marker}'),
        'eval': Command(eval, f'open({str(marker)!r}, "w")'),
        'getattr': Command(getattr, Command(__import__, 'os'), 'system'),
        'open': Command(open, str(marker), 'w'),
        'torch.load': Command(torch.load, io.BytesIO()),
        '_load_from_bytes': Command(torch.storage._load_from_bytes, inner.getvalue()),
        'a class': Config(dict(a=1)),
    }


@pytest.mark.parametrize(
    ('kind', 'named'),
    [
        ('os.system', r'posix\.system'),
        ('eval', r'__builtin__\.eval|builtins\.eval'),
        ('getattr', r'(__builtin__|builtins)\.__import__'),  # a getattr alone is inert
        ('open', 'io.open'),
        ('torch.load', r'torch\.serialization\.load|_io\.BytesIO'),
        ('_load_from_bytes', r'torch\.storage\._load_from_bytes'),
        ('a class', r'mmengine\.config\.config\.Config'),
    ],
)
@pytest.mark.parametrize('place', ['state_dict', 'poa', 'list'])
def test_runs_nothing(save, tmp_path, kind, named, place):
    objects = [evil(tmp_path / 'marker')[kind]] if place == 'list' else {place: {'x': evil(tmp_path / 'marker')[kind]}}
    with pytest.raises(CheckpointError, match=f'({named}), which is neither a tensor nor plain data'):
        read_checkpoint(save(objects))
    assert not (tmp_path / 'marker').exists()


def archive(path, pickled):
    """A torch archive around hand-made pickle code."""
    with zipfile.ZipFile(path, 'w') as file:
        file.writestr('archive/data.pkl', pickled)
        file.writestr('archive/version', '3')
    return path


def test_cannot_change_torch(tmp_path):
    """BUILD sets attributes on whatever lies on the stack: here on what rebuilds tensors."""
    code = (
        b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\n'
        b'N}X\x04\x00\x00\x00evilK\x01s\x86b'  # BUILD with (None, {'evil': 1}): setattr
        b'0}.'  # drop it and return {}
    )
    assert read_checkpoint(archive(tmp_path / 'a.pth', code)) == {}
    assert not vars(torch._utils._rebuild_tensor_v2)


def test_torchscript_is_refused(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / 'a.pt'))
    with pytest.raises(CheckpointError, match='TorchScript'):
        read_checkpoint(tmp_path / 'a.pt')


@pytest.mark.parametrize('part', [0, 1, 3, 4, 30, 0.5, 0.9, -1])
@pytest.mark.parametrize('name', ['a.pth', 'a.safetensors'])
def test_truncated(tmp_path, part, name):
    path = tmp_path / name
    tensors = {'a': torch.ones(100), 'b': torch.ones(100)}
    if name == 'a.pth':
        torch.save({'state_dict': tensors}, path)
    else:
        save_file(tensors, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data)) if isinstance(part, float) else part])
    with pytest.raises(CheckpointError, match=rf'{name}: expected '):
        read_checkpoint(path)


@pytest.mark.parametrize('name', ['a.pth', 'a.pt', 'a.safetensors', 'a'])
@pytest.mark.parametrize(
    'data',
    [
        b'<!doctype html><title>404</title>',
        b'version https://git-lfs.github.com/spec/v1\n',
        b'PK\x03\x04' + bytes(100),
        bytes(range(256)) * 10,
        pickle.dumps({'state_dict': {}}),
        (1 << 62).to_bytes(8, 'little') + b'{}',
    ],
)
def test_garbage(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=f'{name}: expected '):
        read_checkpoint(tmp_path / name)


def test_a_zip_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / 'a.pth', 'w') as file:
        file.writestr('a.txt', 'text')
    with pytest.raises(CheckpointError, match='cannot read it'):
        read_checkpoint(tmp_path / 'a.pth')


def test_old_format_is_refused_unread(save, tmp_path):
    path = save(Command(os.system, f'touch {tmp_path}/marker'), _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r'torch < 1\.6 has to be loaded and saved again'):
        read_checkpoint(path)
    assert not (tmp_path / 'marker').exists()


@pytest.mark.parametrize(('content', 'found'), [([1], 'list'), (torch.ones(1), 'Tensor'), (None, 'NoneType')])
def test_not_a_dict(save, content, found):
    with pytest.raises(CheckpointError, match=f'which is a dict, found {found}'):
        read_checkpoint(save(content))


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r'none\.pth: expected a checkpoint file, found nothing'):
        read_checkpoint(tmp_path / 'none.pth')
    with pytest.raises(CheckpointError, match='found a folder'):
        read_checkpoint(tmp_path)


def test_file_sha256(tmp_path):
    (tmp_path / 'a').write_bytes(b'abc')
    assert file_sha256(tmp_path / 'a') == 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, torch.float8_e5m2, torch.complex64])
def test_numbers_that_are_none_are_named(dtype):
    good = torch.ones(2, 3).to(dtype)
    bad = torch.tensor([[1.0, float('nan')]]).to(dtype)
    weights = {'a': good, 'b': torch.ones(2, dtype=torch.int8), 'c': 'text', 'd': bad.to('meta')}
    check_finite(weights, 'file')
    with pytest.raises(CheckpointError, match=r'^file: there is NaN or infinity in e, f$'):
        check_finite(weights | {'f': bad, 'e': bad}, 'file')


@pytest.mark.parametrize('seed', range(5))
def test_a_flipped_bit_is_found_without_a_seal(save, content, seed):
    """Wherever it is in the content of a tensor; ``torch.load`` takes it for a number."""
    path = save({'state_dict': {'weight': torch.arange(4096.0)}})
    read_checkpoint(path)
    data = bytearray(path.read_bytes())
    start = data.index(torch.arange(4096.0).numpy().tobytes())
    place = int(torch.randint(4096 * 4, (1,), generator=torch.Generator().manual_seed(seed)))
    data[start + place] ^= 1 << seed
    path.write_bytes(data)
    assert not torch.equal(torch.load(path)['state_dict']['weight'], torch.arange(4096.0))
    with pytest.raises(CheckpointError, match=r'is damaged: the CRC-32 of .*data/0'):
        read_checkpoint(path)


def test_files_whose_checksums_were_switched_off_are_read(save):
    if not hasattr(torch.serialization, 'set_crc32_options'):
        pytest.skip('this torch always writes checksums')
    torch.serialization.set_crc32_options(False)
    try:
        path = save({'weight': torch.arange(5.0)})
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_checkpoint(path)['weight'], torch.arange(5.0))
