"""What a wheel brings along, and files about the package that must agree with it."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS

import poa_mm
from poa_mm.version import __version__

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / 'configs' / 'poa').glob('*.py'))


def read_yaml(name):
    return yaml.safe_load((ROOT / name).read_text())


def test_model_index_lists_every_recipe():
    entries = [entry for name in read_yaml('model-index.yml')['Import'] for entry in read_yaml(name)['Models']]
    assert [entry['Config'] for entry in entries] == CONFIGS
    assert [entry['Name'] for entry in entries] == [Path(path).stem for path in CONFIGS]


@pytest.mark.parametrize('entry', read_yaml('configs/poa/metafile.yml')['Models'], ids=lambda entry: entry['Name'])
def test_model_index_has_the_numbers_of_the_network(entry):
    with torch.device('meta'):
        backbone = MODELS.build(Config.fromfile(ROOT / entry['Config']).model.backbone)
    cost = backbone.cost(backbone.space.largest)
    found = entry['Metadata']
    assert (found['Subnets'], found['Parameters'], found['FLOPs']) == (len(backbone.space), cost.params, cost.flops)


def test_versions_agree():
    assert read_yaml('CITATION.cff')['version'] == __version__
    assert f'## {__version__}\n' in (ROOT / 'CHANGELOG.md').read_text()


@pytest.mark.parametrize('name', ['configs', 'tools', 'model-index.yml'])
def test_what_openmmlab_looks_for_is_there(name):
    assert Path(poa_mm.__path__[0], '.mim', name).resolve() == ROOT / name


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp('wheel')
    # A copy, so that nothing of an earlier build is in it, and none of this one stays in the checkout.
    ignored = shutil.ignore_patterns(
        '.git', 'work_dirs', 'build', 'dist', '*.egg-info', '__pycache__', 'data', '_build'
    )
    source = shutil.copytree(ROOT, tmp_path_factory.mktemp('source') / 'poa_mm', symlinks=True, ignore=ignored)
    done = subprocess.run(
        [sys.executable, '-m', 'build', '--no-isolation', '--wheel', '--outdir', folder, source],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob('*.whl'))


@pytest.mark.slow
def test_wheel_holds_configs_and_tools(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    shipped = [*ROOT.glob('configs/**/*.py'), *ROOT.glob('configs/**/*.yml'), *ROOT.glob('tools/**/*.py')]
    shipped += [*ROOT.glob('tools/*.sh'), ROOT / 'model-index.yml']
    assert not {f'poa_mm/.mim/{path.relative_to(ROOT)}' for path in shipped} - names
    assert 'poa_mm/py.typed' in names
    assert not [name for name in names if '__pycache__' in name or name.startswith('tests')]
    done = subprocess.run([sys.executable, '-m', 'twine', 'check', '--strict', wheel], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_demo_runs_from_an_installed_wheel(wheel, tmp_path):
    """In an environment of its own, which has the libraries of this one, far from the checkout."""
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    subprocess.run([sys.executable, '-m', 'venv', tmp_path / 'env'], check=True)
    python = tmp_path / 'env' / 'bin' / 'python'
    subprocess.run(
        [python, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-index', wheel], check=True, env=environment
    )
    site = next((tmp_path / 'env').glob('lib/*/site-packages'))
    (site / 'libraries.pth').write_text(f'{torch.__path__[0]}/..\n')
    options = ['train_cfg.max_iters=2', 'train_dataloader.batch_size=8']
    done = subprocess.run(
        [python, site / 'poa_mm' / '.mim' / 'tools' / 'demo.py', '--work-dir', 'demo', '--cfg-options', *options],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / 'demo' / 'report.json').exists()
    where = subprocess.run(
        [python, '-c', 'import poa_mm; print(poa_mm.__file__)'],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert where.stdout.splitlines()[-1].startswith(str(site))
