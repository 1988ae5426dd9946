"""The functions of a notebook; their docstrings' examples run on a digits supernet with random weights."""

import doctest
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from PIL import Image

from poa_mm import apis
from poa_mm.checkpoint import CheckpointError, describe_supernet, load_teacher
from poa_mm.compat import is_at_least
from poa_mm.deploy.extract import extract_subnets
from poa_mm.elastic import Subnet

ROOT = Path(__file__).parents[1]
DEMO = 'work_dirs/demo/vitt_digits/train/iter_1000.pth'  # what `make demo` writes


@pytest.fixture(scope='module')
def demo(tmp_path_factory, randomise):
    """Folder in which the checkpoint of the demo lies."""
    folder = tmp_path_factory.mktemp('demo')
    model = Config.fromfile(ROOT / 'configs/poa/vitt_digits.py').model
    backbone = randomise(MODELS.build(dict(model.backbone)))
    state = {f'teacher.backbone.{key}': value for key, value in backbone.state_dict().items()}
    (folder / DEMO).parent.mkdir(parents=True)
    torch.save({'state_dict': state, 'poa': describe_supernet(model)}, folder / DEMO)
    return folder


@pytest.mark.parametrize('name', [name for name in apis.__all__ if name != 'pretrain'])
def test_example(name, demo, monkeypatch, tmp_path):
    if name == 'export' and not is_at_least('torch', '2.6'):
        pytest.skip('torch.export of this torch is too old')
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'work_dirs').symlink_to(demo / 'work_dirs')
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    function = getattr(apis, name)
    (test,) = doctest.DocTestFinder(recurse=False).find(function, name, module=apis)
    results = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test)
    assert results.attempted >= 2
    assert results.failed == 0


def test_importing_apis_imports_nothing_else():
    """Beside what ``import poa_mm`` does."""
    code = (
        'import sys, poa_mm; before = set(sys.modules); import poa_mm.apis; '
        'new = set(sys.modules) - before; assert new == {"poa_mm.apis"}, new'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_apis_are_an_attribute_of_the_package():
    import poa_mm

    assert poa_mm.apis is apis
    with pytest.raises(AttributeError, match='no_such'):
        poa_mm.no_such  # noqa: B018


@pytest.mark.parametrize(
    ('family', 'subnet'), [('vit', '48x3'), ('swin', '24x3'), ('resnet', '8x3-4-6-3'), ('resnet', '12x3-2-1-3')]
)
def test_loaded_subnet_computes_what_the_supernet_does(family, subnet, supernet_file, tmp_path):
    path = supernet_file(family)
    supernet, _ = load_teacher(path)
    network = apis.load_subnet(path, subnet)
    assert not network.training
    extract_subnets(path, [subnet], tmp_path)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = supernet.extract_features(images, Subnet.parse(subnet))
        for found in (network, apis.load_subnet(tmp_path / f'poa_{subnet}.py')):
            for mine, theirs in zip(supernet.plain_features(found, images), expected):
                torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_one_subnet_or_several(demo, tmp_path):
    assert [entry['subnet'] for entry in apis.extract(demo / DEMO, '48x3', out_dir=tmp_path / 'one')] == ['48x3']
    entries = apis.extract(demo / DEMO, [Subnet(48, 4), '64x3'], out_dir=tmp_path / 'two', verify=False)
    assert [entry['subnet'] for entry in entries] == ['48x4', '64x3']


def test_from_a_folder_to_a_network(tmp_path, monkeypatch):
    """Pre-training in one call; `docs/tour.ipynb` does it with more images and steps."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'images').mkdir()
    for index in range(8):
        pixels = torch.randint(256, (40, 50, 3), generator=torch.Generator().manual_seed(index), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / 'images' / f'{index}.png')
    head = dict(num_prototypes=[8], hidden_channels=16, bottleneck_channels=8)
    numbers = dict(epochs=2, batch_size=4, accumulate=1, warmup_epochs=1, ramp_epochs=1, freeze_epochs=1, amp=None)
    checkpoint = apis.pretrain(
        'vit',
        'images',
        image_size=32,
        widths=[64, 128],
        depths=[1, 2],
        options={'model.head': head, 'train_dataloader.num_workers': 0, 'default_hooks.logger.interval': 1},
        **numbers,
    )
    assert checkpoint.name == 'iter_4.pth'
    assert [str(row.subnet) for row in apis.list_subnets(checkpoint)] == ['64x1', '64x2', '128x1', '128x2']
    (features,) = apis.load_subnet(checkpoint, '64x1')(torch.zeros(1, 3, 32, 32))
    assert features.shape == (1, 64)


def test_what_is_not_there(demo, tmp_path):
    with pytest.raises(ValueError, match=r"name a subnet such as '384x12'"):
        apis.load_subnet(demo / DEMO)
    with pytest.raises(ValueError, match='subnet 50x3 is not in the space; valid here: widths 48'):
        apis.load_subnet(demo / DEMO, '50x3')
    with pytest.raises(CheckpointError, match='there is no such file'):
        apis.load_subnet(tmp_path / 'poa_1x1.py')
    apis.extract(demo / DEMO, '48x3', out_dir=tmp_path)
    with pytest.raises(ValueError, match='holds subnet 48x3, not 64x3'):
        apis.load_subnet(tmp_path / 'poa_48x3.py', '64x3')
    (tmp_path / 'other.py').write_text("model = dict(backbone=dict(type='ResNet', depth=50))\n")
    with pytest.raises(CheckpointError, match='config of an extracted subnet'):
        apis.load_subnet(tmp_path / 'other.py')


def test_a_config_that_was_edited_is_compared_with_its_weights(demo, tmp_path):
    extract_subnets(demo / DEMO, ['48x3'], tmp_path, verify=False)
    path = tmp_path / 'poa_48x3.py'
    apis.load_subnet(path)
    text = path.read_text()
    for before, after, message in (
        ("'num_heads': 3", "'num_heads': 6", r'num_heads is 6, in the file 3'),
        ('img_size=(8, 8)', 'img_size=(16, 4)', 'the grid of patches'),
    ):
        assert before in text
        path.write_text(text.replace(before, after))
        with pytest.raises(CheckpointError, match=message):
            apis.load_subnet(path)
