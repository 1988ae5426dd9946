import runpy
from pathlib import Path

import pytest
import torch

from poa_mm.checkpoint import load_teacher

main = runpy.run_path(str(Path(__file__).parents[2] / 'tools' / 'import_public_checkpoint.py'))['main']
CONFIG = """
custom_imports = dict(imports=['poa_mm'], allow_failed_imports=False)
model = dict(
    type='POA',
    backbone=dict(
        type='ElasticVisionTransformer',
        arch=dict(embed_dims=64, num_layers=4, num_heads=4, feedforward_channels=256),
        widths=[32, 48, 64],
        depths=[2, 3, 4],
        img_size=64,
        layer_scale_init_value=0.5,
    ),
    head=dict(type='MultiPrototypeHead', num_prototypes=[64, 128], hidden_channels=96, bottleneck_channels=32),
)
"""


@pytest.fixture
def files(golden, tmp_path):
    tensors, _ = golden('vit_step')
    teacher = {name[len('teacher.') :]: tensor for name, tensor in tensors.items() if name.startswith('teacher.')}
    torch.save({'teacher': teacher, 'iteration': 5}, tmp_path / 'public.pth')
    (tmp_path / 'config.py').write_text(CONFIG)
    return tmp_path


def test_import(files, capsys):
    assert main([str(files / 'config.py'), str(files / 'public.pth'), '-o', str(files / 'poa.pth')]) == 0
    assert capsys.readouterr().out.splitlines() == [
        'ignored: iteration',
        'there is no student in it: the student is a copy of the teacher',
        f'wrote {files / "poa.pth"}',
    ]
    assert len(load_teacher(files / 'poa.pth')[0].space) == 9


@pytest.mark.parametrize('missing', ['config.py', 'public.pth'])
def test_a_mistake_is_one_line(files, capsys, missing):
    (files / missing).unlink()
    assert main([str(files / 'config.py'), str(files / 'public.pth'), '-o', str(files / 'poa.pth')]) == 2
    output = capsys.readouterr()
    assert missing in output.err
    assert len(output.err.splitlines()) == 1
    assert not (files / 'poa.pth').exists()


def test_a_file_that_names_no_branch(files, capsys):
    torch.save(torch.load(files / 'public.pth')['teacher'], files / 'bare.pth')
    command = [str(files / 'config.py'), str(files / 'bare.pth'), '-o', str(files / 'poa.pth')]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "taken as the teacher's (--branch student says otherwise)" in said
    assert main([*command, '--branch', 'teacher']) == 0
    assert 'taken as' not in capsys.readouterr().out
    assert main([*command, '--branch', 'student']) == 0
    assert capsys.readouterr().out.splitlines() == [
        'the student stands in for the teacher, which subnets are cut from',
        f'wrote {files / "poa.pth"}',
    ]
