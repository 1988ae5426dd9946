import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from mmpretrain.models import VisionTransformer
from PIL import Image

from poa_mm.checkpoint import load_teacher, read_checkpoint

main = runpy.run_path(str(Path(__file__).parents[2] / 'tools' / 'warm_start.py'))['main']
CONFIG = """
custom_imports = dict(imports=['poa_mm'], allow_failed_imports=False)
model = dict(
    type='POA',
    data_preprocessor=dict(mean=[120.0], std=[60.0]),
    backbone=dict(
        type='ElasticVisionTransformer',
        arch=dict(embed_dims=64, num_layers=2, num_heads=4, feedforward_channels=128),
        widths=[32, 64],
        depths=[1, 2],
        img_size=32,
        patch_size=8,
    ),
    head=dict(type='MultiPrototypeHead', num_prototypes=[64, 128], hidden_channels=96, bottleneck_channels=32),
)
pipeline = [dict(type='SafeLoadImageFromFile'), dict(type='Resize', scale=32), dict(type='PackInputs')]
dataset = dict(type='ImageFolder', data_prefix={folder!r}, pipeline=pipeline)
loader = dict(batch_size=4, num_workers=0, dataset=dataset)
knn = dict(bank=loader, query=loader, ks=(1,))
"""


@pytest.fixture
def files(tmp_path, randomise):
    for number in range(6):
        path = tmp_path / 'images' / 'ab'[number % 2] / f'{number}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    (tmp_path / 'config.py').write_text(CONFIG.replace('{folder!r}', repr(str(tmp_path / 'images'))))
    arch = dict(embed_dims=64, num_layers=2, num_heads=4, feedforward_channels=128)
    network = randomise(VisionTransformer(arch=arch, img_size=32, patch_size=8))
    weights = {f'backbone.{name}': value for name, value in network.state_dict().items()}
    torch.save({'state_dict': {**weights, 'head.fc.weight': torch.zeros(1)}}, tmp_path / 'weights.pth')
    return tmp_path


def command(files, *more):
    return [str(files / 'config.py'), str(files / 'weights.pth'), '-o', str(files / 'start.pth'), *more]


def test_all_of_it(files, capsys):
    scores = files / 'scores.json'
    options = ['--order', 'taylor', '--images', str(files / 'images'), '--num-images', '4', '--scores', str(scores)]
    assert main(command(files, '--heads', '4', *options)) == 0
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert lines[:4] == [
        "weights: mmpretrain's VisionTransformer",
        'left out: head.*',
        'taken as usual, as the file does not say: LayerNorms of eps 1e-06',
        'LayerScale added, which is 1',
    ]
    assert 'warning: weights.pth does not say how its images were normalised' in said
    assert 'compared with the network of mmpretrain' in said
    for text in ('none', 'magnitude', 'taylor', '32x1', '64x2'):
        assert text in said
    assert lines[-1].startswith(f'wrote {files / "start.pth"}, ordered by taylor')
    found = json.loads(scores.read_text())
    assert set(found) == {'none', 'magnitude', 'taylor'}
    assert set(found['taylor']) == {'32x1', '64x2'}
    assert load_teacher(files / 'start.pth')[0].space.largest.width == 64


def test_the_config_can_be_overridden(files, capsys):
    options = ['--heads', '4', '--cfg-options', 'model.backbone.layer_scale_init_value=0']
    assert main(command(files, *options)) == 0
    assert 'LayerScale' not in capsys.readouterr().out
    checkpoint = read_checkpoint(files / 'start.pth')
    model = MODELS.build({**checkpoint['poa']['backbone']})
    assert model.layer_scale_init_value == 0


@pytest.mark.parametrize(
    ('change', 'options', 'message'),
    [
        (lambda f: (f / 'weights.pth').unlink(), (), 'weights.pth'),
        (lambda f: (f / 'config.py').unlink(), (), 'config.py'),
        (lambda f: (f / 'weights.pth').write_bytes(b'PK\x03\x04 no archive'), (), 'weights.pth'),
        (lambda f: torch.save({'a': torch.zeros(1)}, f / 'weights.pth'), (), 'are of none of: timm ViT'),
        (lambda f: None, (), 'num_heads is 1, in the config 4'),
        (lambda f: None, ('--heads', '4', '--order', 'taylor', '--images', 'nowhere'), 'nowhere'),
        (lambda f: None, ('--heads', '4', '--scores', 'x.json', '--subnets', '1x1'), '1x1 is not in the space'),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_nothing_is_written(files, capsys, change, options, message):
    change(files)
    before = sorted(files.iterdir())
    assert main(command(files, *options)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert sorted(files.iterdir()) == before
