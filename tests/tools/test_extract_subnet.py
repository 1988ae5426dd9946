import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS

from poa_mm.checkpoint import describe_supernet
from poa_mm.models import POA

ROOT = Path(__file__).parents[2]
main = runpy.run_path(str(ROOT / 'tools' / 'extract_subnet.py'))['main']


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    arch = dict(embed_dims=32, num_layers=3, num_heads=4, feedforward_channels=64)
    backbone = dict(arch=arch, widths=[16, 32], depths=[2, 3], aliases=dict(small='16x2'), img_size=8, patch_size=4)
    config = dict(
        backbone=dict(type='ElasticVisionTransformer', **backbone),
        head=dict(type='MultiPrototypeHead', num_prototypes=[4], hidden_channels=8, bottleneck_channels=4),
        data_preprocessor=dict(mean=[1.0] * 3, std=[2.0] * 3),
    )
    path = tmp_path_factory.mktemp('extract_subnet') / 'poa.pth'
    torch.save({'state_dict': POA(**config).state_dict(), 'meta': {}, 'poa': describe_supernet(config)}, path)
    return str(path)


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_extracts_by_size_and_by_name(checkpoint, tmp_path, capsys):
    assert main([checkpoint, '--subnet', '32x3', '--subnet', 'small', '-o', str(tmp_path)]) == 0
    assert names(tmp_path) == {
        'manifest.json', *(f'poa_{s}.{suffix}' for s in ('16x2', '32x3') for suffix in ('safetensors', 'py'))
    }  # fmt: skip
    output = capsys.readouterr()
    assert 'poa_16x2.safetensors' in output.out
    assert 'extracting' in output.err


def test_all_as_pth_unverified(checkpoint, tmp_path, capsys):
    assert main([checkpoint, '--all', '--format', 'pth', '--no-verify', '-o', str(tmp_path)]) == 0
    assert len(names(tmp_path)) == 4 * 2 + 1
    assert 'verified' in capsys.readouterr().out


def test_config_for_a_library(checkpoint, tmp_path, capsys):
    assert main([checkpoint, '--subnet', 'small', '--for', 'mmpretrain', '-o', str(tmp_path)]) == 0
    assert 'poa_16x2_mmpretrain.py' in names(tmp_path)
    assert f'tools/dist_train.sh {tmp_path}/poa_16x2_mmpretrain.py' in capsys.readouterr().out


@pytest.mark.parametrize('family', ['vit', 'swin', 'resnet'])
def test_every_family_for_every_library(family, supernets, supernet_file, tmp_path, capsys):
    path = str(supernet_file(family))
    assert main([path, '--list']) == 0
    largest = str(MODELS.build(supernets[family]).space.largest)
    assert largest in capsys.readouterr().out
    libraries = ('mmdet', 'mmseg', 'mmpretrain')
    options = [option for library in libraries for option in ('--for', library)]
    assert main([path, '--subnet', largest, *options, '-o', str(tmp_path)]) == 0
    configs = {f'poa_{largest}.py', *(f'poa_{largest}_{library}.py' for library in libraries)}
    assert names(tmp_path) == {'manifest.json', f'poa_{largest}.safetensors', *configs}
    output = capsys.readouterr().out
    assert all(f'tools/dist_train.sh {tmp_path}/poa_{largest}_{library}.py' in output for library in libraries)


def test_a_subnet_that_a_library_cannot_use(checkpoint, tmp_path, capsys):
    assert main([checkpoint, '--subnet', 'small', '--for', 'mmdet', '-o', str(tmp_path / 'out')]) == 2
    assert '2 blocks have no four quarters' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_list_writes_nothing(checkpoint, capsys):
    before = names(Path(checkpoint).parent)
    assert main([checkpoint, '--list']) == 0
    output = capsys.readouterr().out
    assert all(text in output for text in ('16x2', 'small', '16x3', '32x2', '32x3', 'GMACs'))
    assert names(Path(checkpoint).parent) == before


def test_a_mistake_is_one_line_and_no_file(checkpoint, tmp_path):
    """In a process of its own: nothing else may stand on stderr."""
    command = [sys.executable, str(ROOT / 'tools' / 'extract_subnet.py'), checkpoint, '--subnet', '24x2', '-o', 'out']
    env = os.environ | {'PYTHONPATH': str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        'extract_subnet: error: subnet 24x2 is not in the space; '
        'valid here: widths 16, 32; depths 2, 3; aliases small=16x2'
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', ['missing.pth', 'garbage.pth', '.'])
def test_not_a_checkpoint(tmp_path, capsys, name):
    (tmp_path / 'garbage.pth').write_bytes(b'garbage')
    assert main([str(tmp_path / name), '--all', '-o', str(tmp_path / 'out')]) == 2
    output = capsys.readouterr()
    assert len(output.err.splitlines()) == 1
    assert 'expected' in output.err
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    'options', [[], ['--all'], ['--all', '--list', '-o', 'x'], ['--subnet', 'small', '--format', 'onnx', '-o', 'x']]
)
def test_wrong_options(checkpoint, options, capsys):
    with pytest.raises(SystemExit) as exit:
        main([checkpoint, *options])
    assert exit.value.code == 2
    assert 'Traceback' not in capsys.readouterr().err
