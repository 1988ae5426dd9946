import json
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from sklearn.datasets import load_digits

from poa_mm.deploy.extract import extract_subnets
from poa_mm.models import ElasticVisionTransformer

TOOL = Path(__file__).parents[2] / 'tools' / 'eval_knn.py'
BACKBONE = {
    'type': 'ElasticVisionTransformer',
    'arch': {'embed_dims': 32, 'num_layers': 3, 'num_heads': 4, 'feedforward_channels': 64},
    'widths': [16, 24, 32],
    'depths': [2, 3],
    'aliases': {'small': '16x2'},
    'img_size': 8,
    'patch_size': 4,
    'layer_scale_init_value': 1.0,
}
CONFIG = """
custom_imports = dict(imports=['poa_mm'], allow_failed_imports=False)
default_scope = 'mmpretrain'
model = dict(
    type='POA',
    backbone=dict({backbone}),
    data_preprocessor=dict(mean=[100.0] * 3, std=[80.0] * 3, to_rgb=True),
)
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
loader = dict(batch_size=64, num_workers=0)
knn = dict(
    bank=dict(**loader, dataset=dict(type='CustomDataset', data_root=r'{data}/bank', pipeline=pipeline)),
    query=dict(**loader, dataset=dict(type='CustomDataset', data_root=r'{data}/query', pipeline=pipeline)),
)
"""


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Digits as image folders, a config and a checkpoint with random weights."""
    folder = tmp_path_factory.mktemp('eval_knn')
    digits = load_digits()
    for index in range(300):
        path = folder / ('bank' if index < 200 else 'query') / str(digits.target[index]) / f'{index}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), (digits.images[index] * 15.9).astype(np.uint8))
    arguments = ', '.join(f'{key}={value!r}' for key, value in BACKBONE.items())
    (folder / 'tiny.py').write_text(CONFIG.format(backbone=arguments, data=folder))

    torch.manual_seed(0)
    backbone = ElasticVisionTransformer(**{key: value for key, value in BACKBONE.items() if key != 'type'})
    for param in backbone.parameters():
        torch.nn.init.normal_(param, std=0.2)
    torch.save(
        {
            'state_dict': {f'teacher.backbone.{key}': value for key, value in backbone.state_dict().items()},
            'poa': {'format': 1, 'backbone': BACKBONE},
        },
        folder / 'tiny.pth',
    )
    return folder


@pytest.fixture
def run(files, monkeypatch, capfd):
    """Runs the tool as a command and gives its exit code, stdout and stderr."""
    monkeypatch.chdir(files)

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', [str(TOOL), *arguments])
        capfd.readouterr()
        code = 0
        try:
            runpy.run_path(str(TOOL), run_name='__main__')
        except SystemExit as stop:
            code = stop.code
        return code, *capfd.readouterr()

    yield run
    DefaultScope._instance_dict.clear()


def test_scores_every_subnet(run, files):
    code, out, _ = run('tiny.py', 'tiny.pth')
    report = files / 'work_dirs' / 'tiny' / 'knn'
    scores = json.loads((report / 'knn.json').read_text())
    assert code == 0
    assert list(scores) == ['16x2', '16x3', '24x2', '24x3', '32x2', '32x3']
    assert all(0.2 < score['accuracy'] <= 1 for score in scores.values()), 'better than one in ten'
    assert '32x3' in out and 'knn.json' in out
    assert cv2.imread(str(report / 'knn.png')) is not None


def test_chosen_subnets_and_options(run, tmp_path):
    code, *_ = run(
        'tiny.py', 'tiny.pth', '--subnets', 'small', '32x3', '-o', str(tmp_path), '--cfg-options', 'knn.ks=[3]'
    )
    scores = json.loads((tmp_path / 'knn.json').read_text())
    assert code == 0
    assert list(scores) == ['16x2', '32x3']
    assert all(score['k'] == 3 for score in scores.values())


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['none.py', 'tiny.pth'], 'none.py'),
        (['tiny.py', 'none.pth'], 'none.pth'),
        (['tiny.py'], 'no checkpoint'),
        (['tiny.py', 'tiny.pth', '--subnets', '17x2'], 'subnet 17x2 is not in the space'),
        (
            ['tiny.py', 'tiny.pth', '--subnets', 'all', 'nonsense'],
            'names every subnet and stands alone; got all nonsense',
        ),
        (['tiny.py', 'tiny.pth', '-o', 'tiny.pth'], 'tiny.pth is a file'),
        (['tiny.py', 'tiny.pth', '--cfg-options', 'knn=None'], "no entry 'knn"),
        (['tiny.py', 'tiny.pth', '--cfg-options', 'model=None'], "no 'model.backbone'"),
        (['tiny.py', 'tiny.pth', '--cfg-options', 'knn.ks=[1000]'], 'the 200 images of the bank'),
        (['tiny.py', 'tiny.pth', '--cfg-options', 'knn.bank.dataset.data_root=gone'], 'gone'),
    ],
)
def test_what_users_get_wrong_is_one_line(run, arguments, message):
    code, _, err = run(*arguments)
    assert code == 2
    assert message in err.splitlines()[-1] and err.splitlines()[-1].startswith('eval_knn: ')
    assert 'Traceback' not in err


STOCK = """
_base_ = 'tiny.py'

from poa_mm.deploy.downstream import vit

backbone = vit('16x2', 'subnets/poa_16x2.safetensors', img_size=8, patch_size=4, head_dim=8, mlp_ratio=2)
model = dict(backbone=dict(_delete_=True, **backbone))
"""


def test_extracted_network_scores_as_in_the_supernet(run, files, tmp_path):
    extract_subnets(files / 'tiny.pth', ['16x2'], files / 'subnets')
    (files / 'stock.py').write_text(STOCK)
    scores = []
    for arguments in (
        ['tiny.py', 'tiny.pth', '--subnets', '16x2'],
        ['stock.py'],  # with the weights that the config names
        ['stock.py', 'subnets/poa_16x2.safetensors', '--subnets', '16x2'],
    ):
        assert run(*arguments, '-o', str(tmp_path))[0] == 0
        scores.append(json.loads((tmp_path / 'knn.json').read_text()))
    assert list(scores[0]) == ['16x2'] and scores[0] == scores[1] == scores[2]
    code, _, err = run('stock.py', 'tiny.pth')
    assert code == 2 and 'tiny.pth does not fit' in err.splitlines()[-1]


FAMILY = """
custom_imports = dict(imports=['poa_mm'], allow_failed_imports=False)
default_scope = 'mmpretrain'
_base_ = {base!r}
model = dict({model})
pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=64), dict(type='PackInputs')]
loader = dict(batch_size=50, num_workers=0)
knn = dict(
    bank=dict(**loader, dataset=dict(type='CustomDataset', data_root=r'{data}/bank', pipeline=pipeline)),
    query=dict(**loader, dataset=dict(type='CustomDataset', data_root=r'{data}/query', pipeline=pipeline)),
)
"""


@pytest.mark.parametrize(
    ('family', 'subnet'),
    [('vit', '48x3'), ('swin', '24x3'), ('resnet', '8x3-4-6-3'), ('resnet', '12x3-2-1-3')],
)
def test_extracted_config_of_every_family_scores_as_in_the_supernet(
    family, subnet, run, files, supernets, supernet_file, tmp_path
):
    extract_subnets(supernet_file(family), [subnet], tmp_path)
    normalisation = 'data_preprocessor=dict(mean=[1.5, 2.5, 3.5], std=[4.0, 5.0, 6.0])'  # what the checkpoint says
    supernet = f"type='POA', backbone={supernets[family]!r}, {normalisation}"
    extracted = str(tmp_path / f'poa_{subnet}.py')
    (tmp_path / 'supernet.py').write_text(FAMILY.format(base=[], model=supernet, data=files))
    (tmp_path / 'extracted.py').write_text(FAMILY.format(base=extracted, model=normalisation, data=files))
    scores = []
    for arguments in (['supernet.py', str(supernet_file(family)), '--subnets', subnet], ['extracted.py']):
        config, *rest = arguments
        code, _, err = run(str(tmp_path / config), *rest, '-o', str(tmp_path))
        assert code == 0, err
        scores.append(json.loads((tmp_path / 'knn.json').read_text()))
    assert list(scores[0]) == [subnet] and scores[0] == scores[1]
    assert 0.2 < scores[0][subnet]['accuracy'] <= 1, 'better than one in ten'


@pytest.mark.parametrize('extracted', [False, True])
@pytest.mark.parametrize(
    ('normalisation', 'message'),
    [
        ('mean=[1.5, 2.5, 3.6], std=[4.0, 5.0, 6.0]', 'mean'),
        ('mean=[1.5, 2.5, 3.5], std=[4.0, 5.0, 5.0]', 'std'),
        ('mean=[1.5, 2.5, 3.5], std=[4.0, 5.0, 6.0], to_rgb=True', 'RGB'),
    ],
)
def test_another_normalisation_than_the_checkpoint_records(
    run, files, supernets, supernet_file, tmp_path, extracted, normalisation, message
):
    model = f"type='POA', backbone={supernets['vit']!r}, data_preprocessor=dict({normalisation})"
    base, arguments = [], [str(supernet_file('vit'))]
    if extracted:
        extract_subnets(supernet_file('vit'), ['48x3'], tmp_path)
        model, base, arguments = f'data_preprocessor=dict({normalisation})', str(tmp_path / 'poa_48x3.py'), []
    (tmp_path / 'other.py').write_text(FAMILY.format(base=base, model=model, data=files))
    code, _, err = run(str(tmp_path / 'other.py'), *arguments, '-o', str(tmp_path / 'out'))
    line = err.splitlines()[-1]
    assert code == 2 and 'normalised otherwise than in its pre-training' in line and message in line
    assert not (tmp_path / 'out').exists()
