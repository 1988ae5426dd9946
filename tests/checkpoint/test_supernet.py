import json

import pytest
import torch
from mmengine.config import Config
from mmpretrain.models import ResNet
from small_supernet import BACKBONE, MODEL

from poa_mm.checkpoint import (
    CheckpointError,
    check_state,
    describe_supernet,
    load_teacher,
)
from poa_mm.elastic import Subnet
from poa_mm.models import POA


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
    with pytest.raises(CheckpointError, match="has an entry 'poa', found only meta, state_dict"):
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
