import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from poa_mm.checkpoint import describe_supernet
from poa_mm.deploy.extract import extract_subnets
from poa_mm.models import POA

TOOL = Path(__file__).parents[2] / 'tools' / 'visualize_features.py'
main = runpy.run_path(str(TOOL))['main']


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """A checkpoint with random weights, two digits and a file that is no image."""
    folder = tmp_path_factory.mktemp('visualize_features')
    arch = dict(embed_dims=32, num_layers=3, num_heads=4, feedforward_channels=64)
    backbone = dict(arch=arch, widths=[16, 32], depths=[2, 3], aliases=dict(small='16x2'), img_size=8, patch_size=4)
    config = dict(
        backbone=dict(type='ElasticVisionTransformer', **backbone),
        head=dict(type='MultiPrototypeHead', num_prototypes=[4], hidden_channels=8, bottleneck_channels=4),
        data_preprocessor=dict(mean=[100.0] * 3, std=[80.0] * 3),
    )
    torch.save({'state_dict': POA(**config).state_dict(), 'poa': describe_supernet(config)}, folder / 'poa.pth')
    for digit in range(2):
        cv2.imwrite(str(folder / f'{digit}.png'), (load_digits().images[digit] * 15.9).astype(np.uint8))
    (folder / 'text.png').write_text('no image')
    return folder


@pytest.fixture(autouse=True)
def there(files, monkeypatch):
    monkeypatch.chdir(files)


def test_shows_subnets_and_extracted_networks(tmp_path, capsys):
    out = tmp_path / 'new' / 'features.png'
    extract_subnets('poa.pth', ['16x3'], tmp_path / 'subnets', verify=False)
    command = ['poa.pth', '0.png', '1.png', '--subnets', 'small', '32x3', '--image-size', '16', '-o', str(out)]
    assert main(command) == 0
    assert str(out) in capsys.readouterr().out
    columns = cv2.imread(str(out)).shape[1]
    assert main([*command, '--networks', str(tmp_path / 'subnets' / 'poa_16x3.py')]) == 0
    more_columns = cv2.imread(str(out)).shape[1]
    assert more_columns / columns == pytest.approx(7 / 5, abs=0.05)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['none.pth', '0.png'], 'none.pth'),
        (['0.png', '0.png'], '0.png: expected a checkpoint, which torch.save writes, found'),
        (['poa.pth', 'none.png'], 'none.png'),
        (['poa.pth', '0.png', 'text.png'], 'text.png is not an image'),
        (['poa.pth', '0.png', '--subnets', '17x2'], 'subnet 17x2 is not in the space'),
        (['poa.pth', '0.png', '--networks', 'none.py'], 'none.py'),
        (['poa.pth', '0.png', '--image-size', '9'], 'image size 9x9 is not a multiple'),
        (['poa.pth', '0.png', '-o', 'features.pdf'], 'features.pdf is not a .png file'),
        (['poa.pth', '0.png', '-o', '1.png/features.png'], '1.png'),
    ],
)
def test_what_users_get_wrong_is_one_line(files, capsys, arguments, message):
    before = sorted(files.iterdir())
    assert main(arguments) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith('visualize_features: ') and message in last
    assert sorted(files.iterdir()) == before


def test_help_and_missing_images():
    """As a command of its own."""
    done = subprocess.run([sys.executable, str(TOOL), '--help'], capture_output=True, text=True)
    assert done.returncode == 0 and '--subnets' in done.stdout
    done = subprocess.run([sys.executable, str(TOOL), 'poa.pth'], capture_output=True, text=True)
    assert done.returncode == 2 and 'image' in done.stderr.splitlines()[-1]
