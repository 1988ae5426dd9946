"""Networks of every family that the formats can hold, or cannot."""

import numpy as np
import pytest
from supernets import VIT, build_supernet, save_supernet

from poa_mm.deploy.export.network import ExportNetwork
from poa_mm.deploy.stock import StockNetwork

PREPROCESSORS = dict(rgb=dict(mean=[100.5, 110.5, 120.5], std=[50.0, 60.0, 70.0], to_rgb=True))
PREPROCESSORS['bgr'] = PREPROCESSORS['rgb'] | dict(to_rgb=False)
SUPERNETS = dict(
    vit=VIT,
    # Windows of 2 in maps of 16, 8, 4 and 2 rows: the last is a single window.
    swin=dict(
        type='ElasticSwinTransformer',
        arch=dict(embed_dims=32, depths=[1, 2, 4, 1], num_heads=[4, 8, 16, 32]),
        widths=[16, 24, 32],
        depths=[2, 3, 4],
        img_size=64,
        window_size=2,
    ),
    # timm's ResNet has 64 channels in its stem and norms of 32 groups.
    resnet=dict(
        type='ElasticResNet',
        stage_blocks=[1, 2, 2, 1],
        mid_channels=128,
        widths=[64, 96, 128],
        depths=[1, [1, 2], [1, 2], 1],
        img_size=64,
    ),
)


@pytest.fixture(scope='session')
def preprocessors():
    """How images are normalised, by the order of channels."""
    return PREPROCESSORS


@pytest.fixture(scope='session')
def export_network(randomise):
    """Maker of networks to export: a subnet of a family with random weights, its supernet changed by options."""

    def make(family, subnet, preprocessor='rgb', **options):
        supernet = SUPERNETS[family] | options
        backbone = build_supernet(supernet, randomise)
        config, state = backbone.extract(backbone.space.parse(subnet))
        data_preprocessor = PREPROCESSORS[preprocessor] if isinstance(preprocessor, str) else preprocessor
        return ExportNetwork(
            StockNetwork(backbone.space.parse(subnet), config, state, data_preprocessor, backbone.img_size, 'a', 'b')
        )

    return make


@pytest.fixture(scope='session')
def export_supernet(randomise, tmp_path_factory):
    """Maker of checkpoints of these supernets."""

    def make(family, preprocessor='rgb', **options):
        supernet, path = SUPERNETS[family] | options, tmp_path_factory.mktemp(family) / 'poa.pth'
        return save_supernet(build_supernet(supernet, randomise), supernet, PREPROCESSORS[preprocessor], path)

    return make


@pytest.fixture
def pictures(tmp_path):
    """Folder of class folders with a few pictures of soft colours."""
    from PIL import Image

    for label in range(2):
        folder = tmp_path / 'pictures' / f'class{label}'
        folder.mkdir(parents=True)
        for index in range(6):
            colours = np.random.default_rng(10 * label + index).integers(0, 256, (3, 4, 3), dtype=np.uint8)
            colours[..., 2 * label] //= 3  # little red, then little blue
            Image.fromarray(colours).resize((90, 70), Image.BICUBIC).save(folder / f'{index}.png')
    return tmp_path / 'pictures'
