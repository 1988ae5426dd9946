import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import poa_mm
from poa_mm.deploy import extract
from poa_mm.deploy.extract import compare_with_supernet, extract_subnets, list_subnets
from poa_mm.elastic import Subnet
from poa_mm.engine.checkpoint import CheckpointError, file_sha256, load_teacher

SUBNETS = [f'{width}x{depth}' for width in (32, 48, 64) for depth in (2, 3, 4)]

# Runs without poa_mm: golden features of every subnet from the files alone, in mmpretrain's own network.
STOCK = """
import sys
from pathlib import Path
import torch
from mmengine.config import Config
from mmpretrain.models.backbones import VisionTransformer
from mmpretrain.registry import MODELS
from safetensors.torch import load_file

golden, folders = load_file(sys.argv[1]), {'safetensors': Path(sys.argv[2]), 'pth': Path(sys.argv[3])}

def build(format, name):
    path = folders[format] / f'poa_{name}.{format}'
    cfg = Config.fromfile(path.with_suffix('.py'), import_custom_modules=format == 'pth')
    cfg.model.backbone.out_type = 'raw'
    if format == 'pth':  # by mmengine's own means, from the config
        model = MODELS.build(cfg.model)
        model.init_weights()
        model.backbone.load_state_dict(torch.load(path, weights_only=True)['state_dict'], strict=True)
        return model.backbone
    cfg.model.backbone.pop('init_cfg')
    network = MODELS.build(cfg.model.backbone)
    network.load_state_dict(load_file(path), strict=True)
    return network

for name in sys.argv[4:]:
    for format in folders:
        network = build(format, name)
        assert type(network) is VisionTransformer
        network.eval()
        with torch.no_grad():
            (globals_,) = network(golden['batch.collated_global_crops'])
            (locals_,) = network(golden['batch.collated_local_crops'])
        for key, found in {
            'global.cls': globals_[:, 0], 'global.patch': globals_[:, 1:], 'local.cls': locals_[:, 0]
        }.items():
            torch.testing.assert_close(found, golden[f'features.{name}.{key}'], rtol=0, atol=1e-4)
assert not [name for name in sys.modules if name.startswith('poa_mm')]
"""


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else None


@pytest.fixture
def supernet(checkpoint):
    return load_teacher(checkpoint)[0]


def test_stock_networks_compute_the_golden_features_without_poa_mm(golden, golden_checkpoint, tmp_path):
    tensors, _ = golden('vit_step')
    save_file({k: v for k, v in tensors.items() if k.startswith(('batch.', 'features.'))}, tmp_path / 'golden')
    folders = [tmp_path / format for format in ('safetensors', 'pth')]
    for folder in folders:
        extract_subnets(golden_checkpoint, None, folder, folder.name)
    command = [sys.executable, '-c', STOCK, tmp_path / 'golden', *folders, *SUBNETS]
    env = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'} | {'OMP_NUM_THREADS': '1'}
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize('format', ['safetensors', 'pth'])
def test_config_builds_and_fills_the_model_wherever_the_folder_lies(extracted, tmp_path, format, same_tensors):
    folder = shutil.copytree(extracted[format], tmp_path / 'moved to here')
    cfg = Config.fromfile(folder / 'poa_48x3.py')
    assert cfg.default_scope == 'mmpretrain'
    assert ('custom_imports' in cfg) == (format == 'safetensors')
    assert cfg.data_preprocessor == dict(mean=[1.5, 2.5, 3.5], std=[4.0, 5.0, 6.0], to_rgb=True, num_classes=1000)
    model = MODELS.build(dict(cfg.model, data_preprocessor=cfg.data_preprocessor))
    model.init_weights()
    path = folder / f'poa_48x3.{format}'
    state = load_file(path) if format == 'safetensors' else torch.load(path, weights_only=True)['state_dict']
    same_tensors(model.backbone.state_dict(), state)
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 1000)


def test_manifest(checkpoint, extracted):
    entries = json.loads((extracted['pth'] / 'manifest.json').read_text())
    assert [entry['subnet'] for entry in entries] == SUBNETS
    assert set(contents(extracted['pth'])) == {
        'manifest.json', *(f'poa_{name}.{suffix}' for name in SUBNETS for suffix in ('pth', 'py'))
    }  # fmt: skip
    for entry in entries:
        state = torch.load(extracted['pth'] / entry['file'], weights_only=True)['state_dict']
        assert entry['params'] == sum(tensor.numel() for tensor in state.values())
        assert entry['flops'] > 0
        assert entry['max_abs_diff'] <= 1e-5
        assert entry['image_size'] == [64, 64]
        assert entry['format'] == 'pth'
        assert entry['source'] == 'poa.pth'
        assert entry['source_sha256'] == file_sha256(checkpoint)
        assert entry['poa_mm'] == poa_mm.__version__


def test_weights_say_where_they_come_from(checkpoint, extracted):
    expected = {
        'subnet': '32x2',
        'source': 'poa.pth',
        'source_sha256': file_sha256(checkpoint),
        'poa_mm': poa_mm.__version__,
    }
    assert torch.load(extracted['pth'] / 'poa_32x2.pth', weights_only=True)['meta'] == expected
    with safe_open(extracted['safetensors'] / 'poa_32x2.safetensors', 'pt') as file:
        assert file.metadata() == {'format': 'pt', **expected}


def test_later_extractions_join_the_manifest(checkpoint, tmp_path, same_tensors):
    extract_subnets(checkpoint, ['48x3'], tmp_path)
    first = load_file(tmp_path / 'poa_48x3.safetensors')
    extract_subnets(checkpoint, [Subnet(48, 3), '32x4'], tmp_path, verify=False)
    extract_subnets(checkpoint, ['most', '64x4'], tmp_path, 'pth')
    entries = json.loads((tmp_path / 'manifest.json').read_text())
    assert [entry['file'] for entry in entries] == [
        'poa_32x4.safetensors', 'poa_48x3.safetensors', 'poa_64x4.pth'
    ]  # fmt: skip
    assert [entry['max_abs_diff'] is None for entry in entries] == [True, True, False]
    same_tensors(load_file(tmp_path / 'poa_48x3.safetensors'), first)


def test_files_are_as_readable_as_any(checkpoint, tmp_path):
    extract_subnets(checkpoint, ['32x2'], tmp_path, verify=False)
    (tmp_path / 'any').touch()
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


@pytest.mark.parametrize('subnet', ['40x3', '64x5', 'small', '64', ''])
def test_a_subnet_outside_the_space_writes_nothing(checkpoint, tmp_path, subnet):
    with pytest.raises(ValueError, match=r'widths 32, 48, 64; depths 2, 3, 4; aliases little=32x2'):
        extract_subnets(checkpoint, ['48x3', subnet], tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_unknown_format(checkpoint, tmp_path):
    with pytest.raises(ValueError, match=r'onnx.*safetensors, pth'):
        extract_subnets(checkpoint, None, tmp_path / 'out', 'onnx')
    assert not (tmp_path / 'out').exists()


def test_a_folder_of_another_checkpoint_stays_as_it_is(checkpoint, tmp_path):
    extract_subnets(checkpoint, ['32x2'], tmp_path / 'out')
    content = torch.load(checkpoint, weights_only=True)
    content['state_dict']['teacher.backbone.cls_token'] += 1
    torch.save(content, tmp_path / 'other.pth')
    before = contents(tmp_path / 'out')
    with pytest.raises(CheckpointError, match=r'holds subnets of poa\.pth .* not of other\.pth'):
        extract_subnets(tmp_path / 'other.pth', ['32x2'], tmp_path / 'out')
    assert contents(tmp_path / 'out') == before


@pytest.mark.parametrize('text', ['', 'no json', '{"a": 1}', '[1]', '[{"file": "x"}]'])
def test_broken_manifest(checkpoint, tmp_path, text):
    (tmp_path / 'manifest.json').write_text(text)
    with pytest.raises(CheckpointError, match='manifest'):
        extract_subnets(checkpoint, ['32x2'], tmp_path)
    assert set(contents(tmp_path)) == {'manifest.json'}


def fail_third(function, error):
    """``function``, failing at its third call."""
    calls = []

    def run(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise error
        return function(*args, **kwargs)

    return run


@pytest.mark.parametrize(
    ('module', 'name', 'error'),
    [
        (extract, 'compare_with_supernet', CheckpointError('differs')),
        (extract, '_write_weights', OSError('no space left')),
        (extract, '_write_weights', KeyboardInterrupt()),
        (os, 'replace', OSError('not permitted')),
    ],
)
@pytest.mark.parametrize('existing', [False, True])
def test_a_failure_in_the_middle_leaves_nothing_behind(
    checkpoint, tmp_path, monkeypatch, module, name, error, existing
):
    out = tmp_path / 'out'
    if existing:
        out.mkdir()
        (out / 'notes.txt').write_text('mine')
    before = contents(out)
    monkeypatch.setattr(module, name, fail_third(getattr(module, name), error))
    with pytest.raises(type(error)):
        extract_subnets(checkpoint, ['32x2', '32x3', '32x4', '48x2'], out)
    assert contents(out) == before


@pytest.mark.parametrize('change', [1e-3, float('nan')])
def test_verification_finds_a_wrong_weight(supernet, change):
    config, state = supernet.extract(Subnet(48, 3))
    assert compare_with_supernet(supernet, Subnet(48, 3), config, state) <= 1e-5
    state['ln1.bias'][7] += change
    with pytest.raises(CheckpointError, match='48x3 differs'):
        compare_with_supernet(supernet, Subnet(48, 3), config, state)


def test_progress_is_given_the_subnets(checkpoint, tmp_path):
    seen = []

    def progress(subnets):
        for subnet in subnets:
            yield subnet
            seen.append((len(subnets), str(subnet)))

    extract_subnets(checkpoint, ['most', 'little'], tmp_path, verify=False, progress=progress)
    assert seen == [(2, '64x4'), (2, '32x2')]


def test_list_subnets(checkpoint, supernet):
    rows = list_subnets(checkpoint)
    assert [str(row.subnet) for row in rows] == SUBNETS
    assert [row.aliases for row in rows] == [('little',), *[()] * 7, ('most',)]
    assert (rows[4].params, rows[4].flops) == supernet.cost(Subnet(48, 3))
