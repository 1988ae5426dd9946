"""What several test files share."""

import copy
import json
import os
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')  # before torch: for tensors this small, threads only cost

import pytest
import torch
from supernets import VIT, build_supernet, save_supernet

SHARED = Path(os.environ.get('POA_MM_SHARED', Path(__file__).resolve().parents[2] / 'shared'))


def pytest_collection_modifyitems(items):
    """Tests of GPUs say that they were skipped where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker('gpu'):
            item.add_marker(pytest.mark.skip(reason='no CUDA device: torch.cuda.is_available() is false'))


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same random numbers, alone or among others."""
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def golden():
    """Loader of golden numbers: ``golden('vit_step')`` gives the tensors and what the json beside them says."""

    def load(name):
        path = SHARED / 'golden' / f'{name}.safetensors'
        if not path.is_file():
            if 'POA_MM_SHARED' in os.environ:
                pytest.fail(f'POA_MM_SHARED is set, but there is no {path}')
            pytest.skip(f'no golden tensors {name!r}: set POA_MM_SHARED to the folder that holds golden/')
        from safetensors.torch import load_file

        return load_file(path), json.loads(path.with_suffix('.json').read_text())

    return load


@pytest.fixture(scope='session')
def randomise():
    """Moves every parameter of a module off its initial value, so that no slice hides behind a zero or a one."""

    def move(module, seed=0):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for param in module.parameters():
                param += 0.1 * torch.randn(param.shape, generator=generator)
        return module

    return move


@pytest.fixture(scope='session')
def elastic_vit(randomise):
    """Maker of small elastic ViTs, of the sizes of the golden ``vit_step`` unless told otherwise."""
    from poa_mm.models import ElasticVisionTransformer

    def make(seed=0, **options):
        settings = {key: value for key, value in copy.deepcopy(VIT).items() if key != 'type'}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = randomise(ElasticVisionTransformer(**settings | options), seed)
        network.eval()
        return network

    return make


@pytest.fixture(scope='session')
def supernets():
    """Configs of small elastic backbones of every family, for images of 64 pixels.

    ``8x3-4-6-3`` of the ResNet is a stock network, ``12x3-4-6-3`` needs the plain class of poa_mm.
    """
    return dict(
        vit=copy.deepcopy(VIT),
        swin=dict(
            type='ElasticSwinTransformer',
            arch=dict(embed_dims=32, depths=[1, 1, 4, 1], num_heads=[4, 8, 16, 32]),
            widths=[16, 24, 32],
            depths=[2, 3, 4],
            img_size=64,
            window_size=4,
        ),
        resnet=dict(
            type='ElasticResNet',
            stage_blocks=[3, 4, 6, 3],
            mid_channels=16,
            depths=[3, [2, 3, 4], [1, 6], 3],
            stem_channels=8,
            base_channels=8,
            num_groups=4,
            img_size=64,
        ),
    )


@pytest.fixture(scope='session')
def supernet_file(supernets, randomise, tmp_path_factory):
    """Maker of checkpoints of ``supernets`` with random weights, by family."""
    from functools import cache

    @cache
    def make(family):
        config, path = supernets[family], tmp_path_factory.mktemp(family) / 'poa.pth'
        normalisation = dict(mean=[1.5, 2.5, 3.5], std=[4.0, 5.0, 6.0])
        return save_supernet(build_supernet(config, randomise), config, normalisation, path)

    return make
