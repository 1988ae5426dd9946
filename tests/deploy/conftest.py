"""Checkpoints of the golden network and of a random one like it, and what is extracted from the latter."""

import pytest
import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS
from safetensors.torch import save_file

from poa_mm.checkpoint import describe_supernet
from poa_mm.deploy.extract import extract_subnets
from poa_mm.deploy.public_checkpoint import import_public_checkpoint


def golden_config():
    """Config of the network of the golden ``vit_step``."""
    backbone = dict(
        type='ElasticVisionTransformer',
        arch=dict(embed_dims=64, num_layers=4, num_heads=4, feedforward_channels=256),
        widths=[32, 48, 64],
        depths=[2, 3, 4],
        aliases=dict(little='32x2', most='64x4'),
        img_size=64,
        layer_scale_init_value=0.5,
    )
    head = dict(type='MultiPrototypeHead', num_prototypes=[64, 128], hidden_channels=96, bottleneck_channels=32)
    data_preprocessor = dict(type='SelfSupDataPreprocessor', mean=[1.5, 2.5, 3.5], std=[4.0, 5.0, 6.0], to_rgb=True)
    return Config(dict(model=dict(type='POA', data_preprocessor=data_preprocessor, backbone=backbone, head=head)))


@pytest.fixture
def config():
    return golden_config()


@pytest.fixture(scope='session')
def public(golden):
    """Weights of both branches in the public layout, as ``teacher.*`` and ``student.*``."""
    tensors, _ = golden('vit_step')
    return {name: tensor for name, tensor in tensors.items() if name.startswith(('teacher.', 'student.'))}


@pytest.fixture(scope='session')
def golden_checkpoint(public, tmp_path_factory):
    """The golden network as a checkpoint of poa_mm."""
    folder = tmp_path_factory.mktemp('golden_checkpoint')
    save_file(public, folder / 'public.safetensors')
    import_public_checkpoint(golden_config(), folder / 'public.safetensors', folder / 'poa.pth')
    return folder / 'poa.pth'


@pytest.fixture(scope='session')
def checkpoint(randomise, tmp_path_factory):
    """The same network with random weights, for what needs no golden numbers."""
    config = golden_config().model
    path = tmp_path_factory.mktemp('checkpoint') / 'poa.pth'
    torch.save({'state_dict': randomise(MODELS.build(config)).state_dict(), 'poa': describe_supernet(config)}, path)
    return path


@pytest.fixture(scope='session')
def extracted(checkpoint, tmp_path_factory):
    """Folders with all subnets, by format."""
    folders = {}
    for format in ('safetensors', 'pth'):
        folders[format] = tmp_path_factory.mktemp('subnets') / format
        extract_subnets(checkpoint, None, folders[format], format)
    return folders


@pytest.fixture
def same_tensors():
    def check(found, expected):
        assert set(found) == set(expected)
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), name

    return check
