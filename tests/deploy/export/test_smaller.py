"""Half precision and 8 bits: scored by k-NN, refused below the tolerance."""

import pytest
import torch
from mmengine.config import Config

for module in ('onnx', 'onnxscript', 'onnxruntime'):
    pytest.importorskip(module)

from poa_mm.compat import is_at_least
from poa_mm.deploy.export import ExportError, ExportOptions, export_subnets, smaller
from poa_mm.deploy.export.network import Outputs
from poa_mm.deploy.export.to_onnx import to_half, to_int8

pytestmark = pytest.mark.skipif(not is_at_least('torch', '2.6'), reason="torch's exporter is too old")


@pytest.fixture
def config(pictures, preprocessors):
    """Config whose k-NN looks pictures up among themselves."""
    steps = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=64), dict(type='PackInputs')]
    dataset = dict(type='CustomDataset', data_prefix=str(pictures), with_label=True, pipeline=steps)
    loader = dict(batch_size=4, num_workers=0, dataset=dataset)
    return Config(
        dict(model=dict(data_preprocessor=preprocessors['bgr']), knn=dict(bank=loader, query=loader, ks=(1,)))
    )


@pytest.mark.slow
@pytest.mark.parametrize(('family', 'subnet'), [('vit', '48x3'), ('swin', '24x3'), ('resnet', '96x1-1-1-1')])
def test_both_kinds(family, subnet, export_supernet, config, pictures, tmp_path):
    out = tmp_path / 'out'
    options = ExportOptions(fp16=True, int8=True, config=config, images=pictures, tolerance=0.1)
    seen = []
    entries = export_subnets(export_supernet(family, 'bgr'), [subnet], ['onnx'], out, options, seen.append)
    plain, half, int8 = entries
    assert [entry['format'] for entry in entries] == ['onnx', 'onnx-fp16', 'onnx-int8']
    size = {entry['format']: entry['files'][entry['file']]['bytes'] for entry in entries}
    assert size['onnx-int8'] < size['onnx-fp16'] < size['onnx']
    for entry in (half, int8):
        assert entry['knn'].keys() == {'before', 'after', 'tolerance'}
        assert entry['knn']['before'] == 1.0  # each picture finds itself
        assert entry['knn']['after'] >= 0.9
        assert entry['max_abs_diff'] > plain['max_abs_diff']
    assert int8['calibration'] == dict(images=12, of=str(pictures))
    assert sum('k-NN accuracy' in text for text in seen) == 3
    assert {path.name for path in out.iterdir()} == {'manifest.json', *(entry['file'] for entry in entries)}


@pytest.mark.slow
def test_a_loss_is_refused_and_nothing_written(export_supernet, config, tmp_path, monkeypatch):
    monkeypatch.setattr(smaller, '_score', scores([0.9, 0.895, 0.85]))
    options = ExportOptions(fp16=True, int8=True, config=config)
    out = tmp_path / 'out'
    with pytest.raises(ExportError, match=r'in int8 scores 0\.8500 by k-NN, in float32 0\.9000: a loss of more'):
        export_subnets(export_supernet('vit', 'bgr'), ['32x2'], ['onnx'], out, options)
    assert not out.exists()


def scores(values):
    values = iter(values)
    return lambda *args: next(values)


def test_another_normalisation_is_refused(export_network, config, preprocessors, tmp_path):
    config.model.data_preprocessor = preprocessors['rgb']
    options = ExportOptions(fp16=True, config=config)
    with pytest.raises(ExportError, match='channels swapped to RGB False, in the checkpoint True'):
        list(smaller.write_smaller(export_network('vit', '32x2', 'bgr'), tmp_path, options, print))
    config.model.data_preprocessor = preprocessors['bgr'] | dict(mean=[1.0, 2.0, 3.0])
    with pytest.raises(ExportError, match='mean '):
        list(smaller.write_smaller(export_network('vit', '32x2', 'bgr'), tmp_path, options, print))


def test_images_of_another_size_are_refused(export_network, config, tmp_path):
    for name in ('bank', 'query'):
        config.knn[name].dataset.pipeline[1].scale = 32
    with pytest.raises(ExportError, match="entry 'knn' are 32 x 32 pixels, the file takes 64 x 64; dynamic_size takes"):
        list(
            smaller.write_smaller(
                export_network('vit', '32x2', 'bgr'), tmp_path, ExportOptions(fp16=True, config=config), print
            )
        )


def test_calibration_images_are_spread(export_network, config, pictures, tmp_path, monkeypatch):
    network = export_network('vit', '32x2', 'bgr')
    monkeypatch.setattr(smaller, 'CALIBRATION_IMAGES', 10)
    from mmengine.registry import DefaultScope

    from poa_mm.evaluation.data import open_data

    with DefaultScope.overwrite_default_scope('mmpretrain'):
        data = open_data(config)
    bank = list(smaller._calibration(network, ExportOptions(), data))
    folder = list(smaller._calibration(network, ExportOptions(images=pictures), data))
    for batches in (bank, folder):
        assert [batch.shape for batch in batches] == [(8, 3, 64, 64), (2, 3, 64, 64)]
        # Normalised, in RGB: the first class has little red, the second little blue.
        first, last = batches[0][0], batches[-1][-1]
        assert first[0].mean() < first[2].mean()
        assert last[2].mean() < last[0].mean()
    assert smaller._spread(3) == [0, 1, 2]
    assert len(smaller._spread(1000)) == 10
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ExportError, match='no image in it'):
        list(smaller._calibration(network, ExportOptions(images=tmp_path / 'empty'), data))


@pytest.fixture(scope='module')
def tiny_model(tmp_path_factory):
    """An ONNX file of a linear layer, made without torch."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = torch.randn(48, 16, generator=torch.Generator().manual_seed(0)).numpy()
    nodes = [
        helper.make_node('Flatten', ['images'], ['flat'], axis=1),
        helper.make_node('MatMul', ['flat', 'weight'], ['features']),
    ]
    graph = helper.make_graph(
        nodes,
        'tiny',
        [helper.make_tensor_value_info('images', TensorProto.FLOAT, ['batch', 3, 4, 4])],
        [helper.make_tensor_value_info('features', TensorProto.FLOAT, ['batch', 16])],
        [numpy_helper.from_array(weight, 'weight')],
    )
    path = tmp_path_factory.mktemp('onnx') / 'tiny.onnx'
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid('', 20)], ir_version=10), path)
    return path


@pytest.mark.parametrize('kind', ['fp16', 'int8'])
def test_conversions_stay_near(kind, tiny_model, tmp_path):
    import onnxruntime

    target = tmp_path / 'small.onnx'
    images = torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(1)).numpy()
    if kind == 'fp16':
        to_half(tiny_model, target)
    else:
        to_int8(tiny_model, target, [images[:8], images[8:]])
    assert target.stat().st_size < tiny_model.stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ['small.onnx']
    expected, found = (
        onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider']).run(None, {'images': images})[0]
        for path in (tiny_model, target)
    )
    assert found.dtype == expected.dtype
    assert 0 < abs(found - expected).max() < 0.05 * abs(expected).max()


def test_int8_without_images(tiny_model, tmp_path):
    with pytest.raises(ExportError, match='no image to calibrate on'):
        to_int8(tiny_model, tmp_path / 'small.onnx', [])
    assert not list(tmp_path.iterdir())


def test_features_of_a_file_in_the_pre_trainings_order(export_network, monkeypatch):
    """What the scores are computed from, with the session replaced."""
    network = export_network('vit', '48x3', 'bgr')

    class Session:
        def run(self, names, inputs):
            assert names == list(Outputs._fields)
            return [value.numpy() for value in network.outputs(torch.from_numpy(inputs['images']))]

    monkeypatch.setattr('onnxruntime.InferenceSession', lambda *args, **options: Session())
    backbone = smaller.OnnxBackbone('file.onnx', network)
    assert [str(subnet) for subnet in backbone.space] == ['48x3']
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = network.elastic.plain_features(network.stock.build(), images)
    for found, value in zip(backbone.extract_features(images), expected):
        torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-4)
