import io
import json
import os
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub
from mmpretrain.models import ResNet
from safetensors.torch import save_file

from poa_mm.elastic import Subnet
from poa_mm.engine.checkpoint import (
    CheckpointError,
    check_state,
    describe_supernet,
    file_sha256,
    load_teacher,
    read_checkpoint,
)
from poa_mm.models import POA

BACKBONE = dict(
    type='ElasticVisionTransformer',
    arch=dict(embed_dims=32, num_layers=3, num_heads=4, feedforward_channels=64),
    widths=[16, 32],
    depths=[2, 3],
    img_size=8,
    patch_size=4,
    layer_scale_init_value=0.5,
    norm_cfg=dict(type='LN', eps=1e-5),
    init_cfg=dict(type='TruncNormal', layer='Linear', std=0.1),
)
MODEL = dict(
    type='POA',
    backbone=BACKBONE,
    head=dict(type='MultiPrototypeHead', num_prototypes=(4, 8), hidden_channels=8, bottleneck_channels=4),
    data_preprocessor=dict(mean=[1.0] * 3, std=[2.0] * 3),
)


@pytest.fixture(scope='module')
def model(randomise):
    return randomise(POA(**{key: value for key, value in MODEL.items() if key != 'type'}))


@pytest.fixture
def content(model):
    """What training writes, logs of mmengine included."""
    hub = MessageHub(name='test')
    hub.update_scalars({'train/loss': 0.5, 'train/lr': np.float64(0.1)})
    hub.update_info('best', np.float32(0.25))
    return {
        'meta': {'epoch': 1, 'cfg': 'a = 1', 'dataset_meta': ConfigDict(classes=('a', 'b')), 'seen': {1, 2}},
        'state_dict': model.state_dict(),
        'message_hub': hub.state_dict(),
        'optimizer': torch.optim.AdamW(model.backbone.parameters()).state_dict(),
        'poa': describe_supernet(MODEL) | {'deck': {'seed': 3, 'dealt': 7}},
    }


@pytest.fixture
def save(tmp_path):
    def write(content, name='poa.pth', **options):
        torch.save(content, tmp_path / name, **options)
        return tmp_path / name

    return write


# --- reading ---------------------------------------------------------------------------------


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
    with pytest.raises(CheckpointError, match=f'expected a dict, found {found}'):
        read_checkpoint(save(content))


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r'none\.pth: expected a checkpoint file, found nothing'):
        read_checkpoint(tmp_path / 'none.pth')
    with pytest.raises(CheckpointError, match='found a folder'):
        read_checkpoint(tmp_path)


def test_file_sha256(tmp_path):
    (tmp_path / 'a').write_bytes(b'abc')
    assert file_sha256(tmp_path / 'a') == 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'


# --- the supernet ----------------------------------------------------------------------------


def test_description_is_plain():
    description = describe_supernet(Config(dict(model=MODEL)).model)
    assert description == {'format': 1, **{key: MODEL[key] for key in ('backbone', 'head', 'data_preprocessor')}}
    assert type(description['backbone']['arch']) is dict
    assert type(description['head']['num_prototypes']) is tuple
    json.dumps(description)
    assert describe_supernet(dict(backbone=dict(type=POA)))['backbone'] == {'type': 'POA'}
    assert describe_supernet(dict(backbone={}, data_preprocessor=None)) == {
        'format': 1, 'backbone': {}, 'head': {}, 'data_preprocessor': {}
    }  # fmt: skip


def test_description_refuses_objects():
    with pytest.raises(TypeError, match=r'model\.backbone\.sizes\[1\] is tensor'):
        describe_supernet(dict(backbone=dict(sizes=[1, torch.ones(1)])))


def test_load_teacher(save, content, model):
    backbone, description = load_teacher(save(content))
    assert description == content['poa']
    assert not any(module.training for module in backbone.modules())
    images = torch.rand(2, 3, 8, 8)
    for subnet in (None, Subnet(16, 2)):
        with torch.no_grad():
            found = backbone.extract_features(images, subnet)
            expected = model.teacher['backbone'].extract_features(images, subnet)
        assert torch.equal(found.cls, expected.cls) and torch.equal(found.patch, expected.patch)
    assert not torch.equal(backbone.cls_token, model.backbone.cls_token)  # it is not the student


def test_load_teacher_with_a_config(save, content):
    cfg = Config(dict(backbone=dict(BACKBONE, drop_path_rate=0.2, depths=[3], out_type='raw'))).backbone
    backbone, description = load_teacher(save(content), cfg)
    assert (backbone.out_type, len(backbone.space)) == ('raw', 2)
    assert description == content['poa']
    del content['poa']
    backbone, description = load_teacher(save(content), cfg)
    assert description == {'format': 1, 'backbone': cfg.to_dict(), 'head': {}, 'data_preprocessor': {}}


def test_no_checkpoint_of_poa(save, content):
    with pytest.raises(CheckpointError, match="with an entry 'poa', found only meta, state_dict"):
        load_teacher(save({'state_dict': ResNet(18).state_dict(), 'meta': {}}))
    with pytest.raises(CheckpointError, match=r'expected weights teacher\.backbone\.\*, found only bn1'):
        load_teacher(save({'state_dict': ResNet(18).state_dict()}), BACKBONE)
    for weights in (None, {}, [1]):
        content['state_dict'] = weights
        with pytest.raises(CheckpointError, match='found only nothing'):
            load_teacher(save(content))


def test_config_that_cuts_the_same_weights_in_another_way(supernets, supernet_file):
    with pytest.raises(CheckpointError, match="stem_norm is 'full', in the checkpoint 'sliced'"):
        load_teacher(supernet_file('swin'), dict(supernets['swin'], stem_norm='full'))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(num_layers=4), r'num_layers'),
        (dict(num_heads=8), r"'num_heads': 8.*in the checkpoint.*'num_heads': 4"),  # all shapes are the same
    ],
)
def test_config_of_another_network(save, content, change, message):
    cfg = dict(BACKBONE, arch=BACKBONE['arch'] | change, widths=[32], depths=[change.get('num_layers', 3)])
    with pytest.raises(CheckpointError, match=message):
        load_teacher(save(content), cfg)


@pytest.mark.parametrize(
    ('arch', 'message'),
    [
        (dict(num_layers=4), r'missing layers\.3\.attn\.gamma1\.weight'),
        (dict(num_layers=2), r'unexpected layers\.2\.attn'),
        (dict(feedforward_channels=96), r'layers\.0\.ffn\.layers\.0\.0\.weight is \(64, 32\), expected \(96, 32\)'),
    ],
)
def test_weights_of_another_network(save, content, arch, message):
    del content['poa']
    arch = BACKBONE['arch'] | arch
    with pytest.raises(CheckpointError, match=message):
        load_teacher(save(content), dict(BACKBONE, arch=arch, depths=[arch['num_layers']]))


@pytest.mark.parametrize(
    ('config', 'found'),
    [
        (dict(type='subprocess.Popen', args=['touch', 'marker']), "'subprocess.Popen'"),
        (dict(type='os'), "'os'"),
        (dict(type='antigravity'), "'antigravity'"),
        (dict(type=['x']), r"\['x'\]"),
        (dict(type='LN'), "'LN'"),
        (dict(), 'None'),
        (dict(BACKBONE, norm_cfg=dict(type='os.system', command='touch marker')), "'os.system'"),
        (dict(BACKBONE, aliases=[(dict(type='os.system'),)]), "'os.system'"),
    ],
)
def test_description_cannot_name_what_is_not_ours(save, content, config, found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content['poa']['backbone'] = config
    with pytest.raises(CheckpointError, match=f'elastic backbone of poa_mm, found type {found}'):
        load_teacher(save(content))
    assert not (tmp_path / 'marker').exists()


@pytest.mark.parametrize('description', [{}, 3, [], {'format': 1}, {'format': 2, 'backbone': BACKBONE}])
def test_unknown_description(save, content, description):
    content['poa'] = description
    with pytest.raises(CheckpointError, match='expected a description of format 1'):
        load_teacher(save(content))


def test_description_with_unknown_options(save, content):
    content['poa']['backbone']['colour'] = 'red'
    with pytest.raises(CheckpointError, match=r'cannot build the backbone it describes: .*colour'):
        load_teacher(save(content))


def test_check_state():
    expected = {f'w{i}': torch.ones(i) for i in range(12)}
    check_state(expected, {name: tensor + 1 for name, tensor in expected.items()}, 'x')
    with pytest.raises(CheckpointError, match=r'^x does not fit .*: missing w0, w1; unexpected y; w2 is list, '):
        check_state(expected, {'w2': [1], 'y': 1, **{f'w{i}': torch.ones(i) for i in range(3, 12)}}, 'x')
    with pytest.raises(CheckpointError, match=r'; and 3 more$'):
        check_state(expected, {name: torch.ones(20) for name in list(expected)[1:]} | {'w0': torch.ones(0)}, 'x')
