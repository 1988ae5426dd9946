"""Conversions in this process; tests/deploy/export/test_run.py loads the files in one without poa_mm."""

import pytest
import torch

transformers = pytest.importorskip('transformers')

from poa_mm.deploy.export import ExportOptions, to_huggingface
from poa_mm.deploy.export.network import ExportError
from poa_mm.deploy.export.standalone import run_huggingface, run_processor
from poa_mm.deploy.export.verify import Verification, pipeline_features

CASES = [
    ('vit', '48x3', {}),
    ('vit', '32x2', dict(layer_scale_init_value=0, qkv_bias=False, patch_size=8, in_channels=1)),
    ('vit', '64x4', dict(norm_cfg=dict(type='LN', eps=1e-5))),
    ('swin', '24x4', {}),
    ('swin', '16x4', dict(arch=dict(embed_dims=32, depths=[2, 2, 4, 2], num_heads=[4, 8, 16, 32]), img_size=96)),
]


@pytest.mark.parametrize(('family', 'subnet', 'options'), CASES)
def test_transformers_computes_what_the_stock_network_does(family, subnet, options, export_network, tmp_path):
    network = export_network(family, subnet, 'bgr' if 'in_channels' not in options else {}, **options)
    to_huggingface.check(network, ExportOptions())
    details = to_huggingface.write(network, tmp_path, ExportOptions())
    images = torch.randn(2, network.in_channels, *network.image_size)
    case = dict(images=images, **network.outputs(images)._asdict())
    assert run_huggingface(dict(path=str(tmp_path / details['file'])), [case]) <= 1e-4
    assert (details['processor'] is None) == (network.in_channels == 1)


@pytest.mark.parametrize('size', [64, 128])
def test_image_to_processor_to_model(size, export_network, tmp_path):
    network = export_network('vit', '48x3', 'bgr', img_size=size)
    details = to_huggingface.write(network, tmp_path, ExportOptions())
    files = [Verification(tmp_path)._picture(network, index) for index in range(2)]
    cases = [dict(features=pipeline_features(network, file)) for file in files]
    job = dict(path=str(tmp_path / details['file']), files=[str(file) for file in files])
    assert run_processor(job, cases) <= 1e-3
    assert run_processor(job, cases[::-1]) > 0.01


@pytest.mark.parametrize(
    ('family', 'subnet', 'options', 'message'),
    [
        ('vit', '48x3', dict(img_size=(64, 96)), 'square.*64x96'),
        ('swin', '24x3', {}, r"huggingface's Swin.*shifted in turn"),
        ('swin', '24x4', dict(window_size=4), 'not larger than a window; that of stage 3 has 4 rows'),
        ('resnet', '64x1-1-1-1', {}, 'no ResNet with GroupNorm; what works: timm, onnx, torch'),
    ],
)
def test_what_transformers_cannot_hold(family, subnet, options, message, export_network):
    with pytest.raises(ExportError, match=message):
        to_huggingface.check(export_network(family, subnet, **options), ExportOptions())
