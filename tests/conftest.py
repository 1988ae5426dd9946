"""What several test files share."""

import json
import os
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')  # before torch: for tensors this small, threads only cost

import pytest
import torch

SHARED = Path(os.environ.get('POA_MM_SHARED', Path(__file__).resolve().parents[2] / 'shared'))


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
        settings = dict(
            arch=dict(embed_dims=64, num_layers=4, num_heads=4, feedforward_channels=256),
            widths=(32, 48, 64),
            depths=(2, 3, 4),
            img_size=64,
            layer_scale_init_value=0.5,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = randomise(ElasticVisionTransformer(**settings | options), seed)
        network.eval()
        return network

    return make
