import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from poa_mm.deploy.export import run

ROOT = Path(__file__).parents[2]
VITT_DIGITS = str(ROOT / 'configs' / 'poa' / 'vitt_digits.py')
main = runpy.run_path(str(ROOT / 'tools' / 'export_subnet.py'))['main']


@pytest.mark.skipif(not run.is_at_least('torch', '2.6'), reason='torch.export of this torch is too old')
def test_a_torch_program(supernet_file, tmp_path, capsys):
    arguments = [str(supernet_file('vit')), '--subnet', '32x2', '--to', 'torch', '-o', str(tmp_path / 'out')]
    assert main(arguments) == 0
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {'poa_32x2.pt2', 'manifest.json'}
    output = capsys.readouterr()
    assert 'poa_32x2.pt2' in output.out
    assert 'comparing' in output.err


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--subnet', '32x2', '--to', 'timm', 'coreml'], "format 'coreml' is not one of timm, huggingface"),
        (['--subnet', '99x2', '--to', 'timm'], 'subnet 99x2 is not in the space'),
        (['--subnet', '32', '--to', 'timm'], "subnet '32' is not of the form WIDTHxDEPTH"),
        (['--to', 'timm'], 'name the subnets to export'),
        (['--subnet', '32x2', '--to', 'timm', '--config', 'no_such.py'], 'no_such.py'),
        (['--subnet', '32x2', '--to', 'onnx', '--int8'], "entry 'knn'"),
        (['--subnet', '32x2', '--to', 'onnx', '--images', 'mine'], 'images mine are what int8 is calibrated on'),
        (['--subnet', '32x2', '--to', 'onnx', '--tolerance', '0.1'], 'tolerance is for fp16 and int8'),
        (['--subnet', '32x2', '--to', 'onnx', '--config', VITT_DIGITS], 'config is for fp16 and int8'),
    ],
)
def test_a_mistake_is_one_line(arguments, message, supernet_file, tmp_path, capsys):
    if 'coreml' not in arguments:  # a format that does not exist is refused first
        pytest.importorskip('timm')
    assert main([str(supernet_file('vit')), *arguments, '-o', str(tmp_path / 'out')]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert message in error
    assert not list(tmp_path.iterdir())


def test_not_a_checkpoint(tmp_path, capsys):
    for name in ('missing.pth', 'missing.py', '.'):
        assert main([str(tmp_path / name), '--subnet', '1x1', '--to', 'timm', '-o', str(tmp_path / 'out')]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_an_out_dir_that_is_a_file(supernet_file, tmp_path, capsys):
    (tmp_path / 'out').write_text('mine')
    arguments = [str(supernet_file('vit')), '--subnet', '32x2', '--to', 'torch', '-o', str(tmp_path / 'out')]
    assert main(arguments) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert (tmp_path / 'out').read_text() == 'mine'


def test_nothing_else_stands_on_stderr(supernet_file, tmp_path):
    """In a process of its own."""
    pytest.importorskip('timm')
    tool = str(ROOT / 'tools' / 'export_subnet.py')
    command = [sys.executable, tool, str(supernet_file('resnet')), '--subnet', '8x3-2-1-3', '--to', 'timm', '-o', 'out']
    env = os.environ | {'PYTHONPATH': str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("export_subnet: error: timm's ResNet cannot hold subnet 8x3-2-1-3")
    assert not list(tmp_path.iterdir())
