"""Subnets of several patch sizes, from a checkpoint to files and back."""

import json

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope, init_default_scope
from mmpretrain.registry import MODELS
from safetensors import safe_open
from torch.testing import assert_close

from poa_mm.apis import list_subnets, load_subnet
from poa_mm.checkpoint import CheckpointError, describe_supernet, load_teacher
from poa_mm.deploy.downstream import resnet, swin, vit
from poa_mm.deploy.extract import extract_subnets
from poa_mm.deploy.stock import open_network
from poa_mm.elastic import Subnet
from poa_mm.evaluation import load_backbone

BACKBONE = dict(
    type='ElasticVisionTransformer',
    arch=dict(embed_dims=64, num_layers=4, num_heads=4, feedforward_channels=256),
    widths=[32, 64],
    depths=[2, 4],
    aliases=dict(small='32x2', fine='64x4p8'),
    img_size=64,
    patch_sizes=[8, 16, 32],
    layer_scale_init_value=0.5,
)
PREPROCESSOR = dict(mean=[1.5, 2.5, 3.5], std=[4.0, 5.0, 6.0], to_rgb=True)


@pytest.fixture(scope='module', autouse=True)
def scope():
    init_default_scope('mmpretrain')
    yield
    DefaultScope._instance_dict.clear()


@pytest.fixture(scope='module')
def checkpoint(randomise, tmp_path_factory):
    path = tmp_path_factory.mktemp('patches') / 'poa.pth'
    state = randomise(MODELS.build(BACKBONE)).state_dict()
    description = describe_supernet(dict(backbone=BACKBONE, data_preprocessor=PREPROCESSOR))
    torch.save({'state_dict': {f'teacher.backbone.{k}': v for k, v in state.items()}, 'poa': description}, path)
    return path


@pytest.fixture(scope='module')
def supernet(checkpoint):
    return load_teacher(checkpoint)[0]


@pytest.fixture(scope='module', params=['safetensors', 'pth'])
def folder(request, checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp('subnets') / request.param
    extract_subnets(checkpoint, None, out, request.param)
    return out


def test_all_are_listed(checkpoint):
    rows = list_subnets(checkpoint)
    assert [str(row.subnet) for row in rows[:4]] == ['32x2p8', '32x2p32', '32x2', '32x4p8']
    assert {str(row.subnet): row.aliases for row in rows if row.aliases} == {'32x2': ('small',), '64x4p8': ('fine',)}
    assert rows[0].flops > 2.5 * rows[2].flops > 2.5 * rows[1].flops


def test_every_patch_size_is_a_file_that_says_what_it_is(folder, supernet):
    entries = {entry['subnet']: entry for entry in json.loads((folder / 'manifest.json').read_text())}
    assert set(entries) == set(map(str, supernet.space))
    for name, entry in entries.items():
        assert entry['file'].startswith(f'poa_{name}.') and entry['configs'] == [f'poa_{name}.py']
        assert entry['max_abs_diff'] < 1e-4
        assert entry['flops'] == supernet.cost(Subnet.parse(name)).flops
    path = folder / entries['32x4p8']['file']
    if path.suffix == '.safetensors':
        with safe_open(path, 'pt') as file:
            assert file.metadata()['subnet'] == '32x4p8'
            assert json.loads(file.metadata()['backbone'])['patch_size'] == [8, 8]


@pytest.mark.parametrize('name', ['64x4p8', '32x2p32', '32x2'])
@torch.no_grad()
def test_a_file_is_evaluated_and_exported_under_its_name(folder, supernet, name):
    """Files of all patch sizes have the same width and depth; that of one must never pass for another's."""
    subnet = Subnet.parse(name)
    config = Config.fromfile(folder / f'poa_{name}.py').model.backbone
    network = load_backbone(config)
    assert list(network.space) == [subnet]
    image = torch.randn(2, 3, 64, 64)
    assert_close(network.extract_features(image), supernet.extract_features(image, subnet), rtol=1e-4, atol=1e-4)
    stock = open_network(folder / f'poa_{name}.py')
    assert stock.subnet == subnet and stock.config['patch_size'] == (subnet.patch or 16,) * 2
    with pytest.raises(ValueError, match=f'holds subnet {name}, not 32x4'):
        open_network(folder / f'poa_{name}.py', '32x4')


@torch.no_grad()
def test_names_of_the_native_size(checkpoint, supernet, tmp_path):
    entries = extract_subnets(checkpoint, ['32x2p16', 'small', '32x2', Subnet(32, 2, 16), 'fine'], tmp_path / 'out')
    assert [entry['subnet'] for entry in entries] == ['32x2', '64x4p8']
    networks = [load_subnet(checkpoint, name) for name in ('small', '32x2p16')]
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(*(network(image)[0] for network in networks))
    with pytest.raises(ValueError, match=r'32x2p4 is not in the space; .* patch sizes 8, 16, 32 \(16 is native\)'):
        load_subnet(checkpoint, '32x2p4')


@pytest.mark.parametrize(
    ('wrong', 'message'), [('32x4p8', 'is of subnet 32x4p8'), ('32x2p32', r'are \(8, 8\)'), ('8', '')]
)
def test_a_file_of_another_name_is_refused(checkpoint, supernet, tmp_path, wrong, message):
    extract_subnets(checkpoint, ['32x2p8'], tmp_path / 'out', 'pth')
    content = torch.load(tmp_path / 'out' / 'poa_32x2p8.pth', weights_only=True)
    content['meta']['subnet'] = wrong
    torch.save(content, tmp_path / 'out' / 'poa_32x2p8.pth')
    with pytest.raises(CheckpointError, match=message):
        load_backbone(Config.fromfile(tmp_path / 'out' / 'poa_32x2p8.py').model.backbone)
    with pytest.raises(CheckpointError, match=message):
        open_network(tmp_path / 'out' / 'poa_32x2p8.py')


def test_weights_do_not_go_into_another_patch_size(checkpoint, tmp_path):
    extract_subnets(checkpoint, ['32x2p8', '32x2'], tmp_path / 'out')
    config = Config.fromfile(tmp_path / 'out' / 'poa_32x2.py').model.backbone
    config.init_cfg.checkpoint = str(tmp_path / 'out' / 'poa_32x2p8.safetensors')
    with pytest.raises(CheckpointError, match='patch_embed'):
        load_backbone(config)


@pytest.mark.parametrize('library', ['mmpretrain', 'mmdet', 'mmseg'])
def test_configs_of_libraries(checkpoint, tmp_path, library):
    extract_subnets(checkpoint, ['64x4p8', '64x4'], tmp_path / 'out', libraries=[library])
    for name, patch in (('64x4p8', 8), ('64x4', 16)):
        text = (tmp_path / 'out' / f'poa_{name}_{library}.py').read_text()
        assert f'patch_size=({patch}, {patch})' in text and f'poa_{name}.safetensors' in text
    if library == 'mmpretrain':
        extract_subnets(checkpoint, ['64x4p32'], tmp_path / 'out', libraries=[library])
        return
    with pytest.raises(ValueError, match=r'patch_size \(32, 32\) cannot be rescaled to strides .* valid: 8 and 16'):
        extract_subnets(checkpoint, ['64x4p8', '64x4p32'], tmp_path / 'new', libraries=[library])
    assert not (tmp_path / 'new').exists()


def test_a_config_by_name_has_the_patch_size_of_the_name():
    assert vit('384x12p32')['patch_size'] == (32, 32)
    assert vit(Subnet(384, 12, 8), patch_size=16)['patch_size'] == (8, 8)
    assert vit('small', patch_size=14)['patch_size'] == (14, 14)
    for make, name in ((swin, '96x6p8'), (resnet, '64x3-4-6-3p8')):
        with pytest.raises(ValueError, match=rf'{name}: only a ViT has a choice of patch sizes'):
            make(name)


def test_another_choice_of_patch_sizes_is_another_supernet(checkpoint, supernet):
    from poa_mm.checkpoint import check_same_supernet

    _, description = load_teacher(checkpoint)
    check_same_supernet(description, supernet, 'poa.pth')
    other = MODELS.build(BACKBONE | dict(patch_sizes=[8, 16], aliases={}))
    with pytest.raises(CheckpointError, match=r'its space is .*patch sizes 8, 16 \(16.* in the checkpoint .*8, 16, 32'):
        check_same_supernet(description, other, 'poa.pth')


@pytest.mark.slow
def test_exports_of_every_patch_size(checkpoint, tmp_path):
    for module in ('timm', 'transformers', 'onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(module)
    from poa_mm.deploy.export import ExportOptions, export_subnets

    formats = ('timm', 'huggingface', 'onnx', 'torch')
    entries = export_subnets(checkpoint, ['32x2p8'], formats, tmp_path / 'out', ExportOptions(dynamic_size=True))
    entries += export_subnets(checkpoint, ['32x2', '32x2p32'], ['onnx'], tmp_path / 'out')
    assert [(entry['subnet'], entry['format']) for entry in entries] == [
        *(('32x2p8', format) for format in formats),
        ('32x2', 'onnx'),
        ('32x2p32', 'onnx'),
    ]
    assert all(entry['max_abs_diff'] <= 1e-4 for entry in entries)
    assert {path.name for path in (tmp_path / 'out').glob('*.onnx')} == {
        'poa_32x2.onnx',
        'poa_32x2p8.onnx',
        'poa_32x2p32.onnx',
    }
