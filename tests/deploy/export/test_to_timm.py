"""Conversions in this process; tests/deploy/export/test_run.py loads the files in one without poa_mm."""

import pytest
import torch

timm = pytest.importorskip('timm')

from poa_mm.deploy.export import ExportOptions, to_timm
from poa_mm.deploy.export.network import ExportError
from poa_mm.deploy.export.standalone import run_timm

CASES = [
    ('vit', '48x3', {}),
    ('vit', '32x2', dict(layer_scale_init_value=0, qkv_bias=False, img_size=(48, 64), patch_size=8, in_channels=1)),
    ('vit', '48x4', dict(arch=dict(embed_dims=64, num_layers=4, num_heads=4, feedforward_channels=144))),
    ('swin', '24x4', {}),
    ('swin', '16x2', dict(in_channels=4, img_size=(64, 96))),
    ('swin', '32x4', dict(arch=dict(embed_dims=32, depths=[2, 2, 4, 2], num_heads=[4, 8, 16, 32]))),
    ('resnet', '96x1-2-1-1', {}),
    ('resnet', '64x1-1-2-1', dict(base_channels=32, num_groups=1)),
]


def cases_of(network):
    images = torch.randn(2, network.in_channels, *network.image_size)
    return [dict(images=images, **network.outputs(images)._asdict())]


@pytest.mark.parametrize(('family', 'subnet', 'options'), CASES)
def test_timm_computes_what_the_stock_network_does(family, subnet, options, export_network, tmp_path):
    channels = options.get('in_channels', 3)
    network = export_network(family, subnet, 'bgr' if channels == 3 else {}, **options)
    to_timm.check(network, ExportOptions())
    details = to_timm.write(network, tmp_path, ExportOptions())
    job = dict(
        path=str(tmp_path / details['file']),
        arguments=dict(name=to_timm.BASES[network.kind], **to_timm.model_args(network)),
    )
    assert run_timm(job, cases_of(network)) <= 1e-4
    assert details['load'].startswith(f"timm.create_model('{to_timm.BASES[network.kind]}'")
    data = timm.data.resolve_model_data_config(timm.create_model(f'local-dir:{job["path"]}', pretrained=False))
    assert data['input_size'] == (channels, *network.image_size)
    assert list(data['mean']) == network.mean
    assert data['interpolation'] == 'bicubic'


@pytest.mark.parametrize(
    ('family', 'subnet', 'options', 'message'),
    [
        ('vit', '48x3', dict(norm_cfg=dict(type='LN', eps=1e-5)), 'eps 1e-6.*1e-05; what works: huggingface'),
        ('swin', '24x3', {}, r'shifted in turn.*stage 3 are not \(-ss.*what works: onnx'),
        ('swin', '24x4', dict(window_size=3), r'stage 2 \(8x8\) do not divide into windows of 3'),
        ('resnet', '64x1-1-1-1', dict(stem_channels=32), 'its stem has 64 channels, that of the subnet 32'),
        ('resnet', '64x1-1-1-1', dict(num_groups=16, strides=(1, 2, 2, 1)), r'1, 2, 2, 2.*32 groups.*works: onnx'),
    ],
)
def test_what_timm_cannot_hold(family, subnet, options, message, export_network):
    with pytest.raises(ExportError, match=message):
        to_timm.check(export_network(family, subnet, **options), ExportOptions())


def test_a_wrong_eps_is_found(export_network):
    network = export_network('vit', '48x3')
    model = timm.create_model(to_timm.BASES['ViT'], **to_timm.model_args(network))
    to_timm.check_eps(network, model)
    model.norm.eps = 1e-5
    with pytest.raises(ExportError, match='eps'):
        to_timm.check_eps(network, model)


def test_no_weight_is_lost(export_network):
    network = export_network('vit', '48x3')
    network.state['layers.0.new.weight'] = torch.zeros(1)
    with pytest.raises(ExportError, match=r'do not know the weight layers\.0\.new\.weight'):
        to_timm.state_dict(network)


def test_mlp_ratio_gives_the_hidden_channels():
    for width in range(16, 400, 7):
        for hidden in range(width, 4 * width, 5):
            assert int(width * to_timm.mlp_ratio(width, hidden)) == hidden


@pytest.mark.parametrize('width', [64, 96, 128])
def test_mid_channels_of_the_paper_resnet(width, export_network):
    args = to_timm.model_args(export_network('resnet', f'{width}x1-2-2-1'))
    assert (args['base_width'], args['channels']) == (width, [64, 128, 256, 512])
