"""Whole exports. The slow tests load what was written in a process without poa_mm, as every export does."""

import importlib.util
import json

import pytest
import torch

from poa_mm.checkpoint import CheckpointError, file_sha256
from poa_mm.deploy.export import ExportError, ExportOptions, export_subnets, run, to_torch, verify
from poa_mm.deploy.extract import extract_subnets
from poa_mm.elastic import ElasticLayerScale

for module in ('timm', 'transformers', 'onnx', 'onnxscript', 'onnxruntime'):
    pytest.importorskip(module)

TOLERANCES = dict(timm=1e-4, huggingface=1e-4, onnx=1e-4, torch=1e-5)
WHOLE = [
    ('vit', ['48x3', '64x4'], ('timm', 'huggingface', 'onnx', 'torch'), True),
    ('vit', ['32x2'], ('onnx', 'torch'), False),
    ('swin', ['24x4'], ('timm', 'huggingface', 'onnx', 'torch'), True),
    ('swin', ['24x3'], ('onnx',), False),
    ('resnet', ['96x1-2-1-1'], ('timm', 'onnx', 'torch'), True),
]


def files_of(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize(('family', 'subnets', 'formats', 'dynamic'), WHOLE)
def test_every_format_in_a_process_without_poa_mm(family, subnets, formats, dynamic, export_supernet, tmp_path):
    checkpoint = export_supernet(family, 'bgr')
    out = tmp_path / 'out'
    entries = export_subnets(checkpoint, subnets, formats, out, ExportOptions(dynamic_size=dynamic))
    assert [(entry['subnet'], entry['format']) for entry in entries] == [(s, f) for s in subnets for f in formats]
    manifest = json.loads((out / 'manifest.json').read_text())
    assert sorted(map(str, manifest)) == sorted(map(str, json.loads(json.dumps(entries))))
    listed = {'manifest.json'}
    for entry in entries:
        assert entry['max_abs_diff'] <= TOLERANCES[entry['format']]
        assert entry['source_sha256'] == file_sha256(checkpoint)
        assert all(entry['libraries'].values())
        if entry['format'] == 'huggingface':
            assert entry['max_abs_diff_from_image'] <= 1e-3
        if entry['format'] == 'onnx':
            assert entry['opset'] >= 18
            assert bool(entry['dynamic_size']) == dynamic
        for name, file in entry['files'].items():
            assert file['sha256'] == file_sha256(out / name)
            listed.add(name)
    assert files_of(tmp_path) == {f'out/{name}' for name in listed}


@pytest.mark.slow
def test_vit_large(tmp_path):
    """A subnet of the paper's supernet, in every format."""
    from mmengine.registry import MODELS

    from poa_mm.checkpoint import describe_supernet

    supernet = dict(type='ElasticVisionTransformer', arch='large', drop_path_rate=0.1)
    normalisation = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
    backbone = MODELS.build(supernet)
    backbone.init_weights()
    for module in backbone.modules():
        if isinstance(module, ElasticLayerScale):  # which is so small at first that no block counts
            torch.nn.init.constant_(module.weight, 0.5)
    params = backbone.cost(backbone.space.parse('448x17')).params
    state = {f'teacher.backbone.{key}': value for key, value in backbone.state_dict().items()}
    description = describe_supernet(dict(backbone=supernet, data_preprocessor=normalisation))
    torch.save({'state_dict': state, 'poa': description}, tmp_path / 'poa.pth')
    del backbone, state
    entries = export_subnets(tmp_path / 'poa.pth', ['448x17'], TOLERANCES, tmp_path / 'out')
    assert [entry['max_abs_diff'] <= TOLERANCES[entry['format']] for entry in entries] == [True] * 4
    assert entries[1]['max_abs_diff_from_image'] <= 1e-3
    assert [entry['params'] for entry in entries] == [params] * 4


def test_a_torch_program_of_an_extracted_subnet(export_supernet, tmp_path):
    checkpoint = export_supernet('vit')
    extract_subnets(checkpoint, ['32x2'], tmp_path)
    (entry,) = export_subnets(tmp_path / 'poa_32x2.py', None, ['torch'], tmp_path)
    assert entry['max_abs_diff'] <= 1e-5
    assert entry['source_sha256'] == file_sha256(checkpoint)
    entries = json.loads((tmp_path / 'manifest.json').read_text())
    assert [entry['file'] for entry in entries] == ['poa_32x2.safetensors', 'poa_32x2.pt2']
    loaded = torch.export.load(tmp_path / 'poa_32x2.pt2', extra_files=(extra := {to_torch.METADATA: ''}))
    assert json.loads(extra[to_torch.METADATA])['input']['mean'] == entry['input']['mean']
    features, feature_map = loaded.module()(torch.zeros(5, 3, 64, 64))
    assert (features.shape, feature_map.shape) == ((5, 32), (5, 32, 4, 4))


BAD = [
    (['48x3'], ['tensorrt'], {}, "format 'tensorrt' is not one of timm, huggingface, onnx, torch"),
    (['48x3'], [], {}, 'no format'),
    (['40x3'], ['timm'], {}, 'subnet 40x3 is not in the space; valid here: widths 32, 48, 64'),
    (None, ['timm'], {}, 'name the subnets to export'),
    (['48x3'], ['timm'], dict(fp16=True), 'kinds of onnx'),
    (['48x3'], ['onnx'], dict(int8=True), "a config with an entry 'knn'"),
    (['48x3'], ['timm'], dict(dynamic_size=True), 'choice of onnx and torch'),
]


@pytest.mark.parametrize(('subnets', 'formats', 'options', 'message'), BAD)
def test_bad_input(subnets, formats, options, message, export_supernet, tmp_path):
    checkpoint = export_supernet('vit')
    with pytest.raises(ValueError, match=message):
        export_subnets(checkpoint, subnets, formats, tmp_path / 'out', ExportOptions(**options))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('family', 'subnet', 'formats', 'options', 'message'),
    [
        ('resnet', '64x1-1-1-1', ['timm', 'huggingface'], {}, 'no ResNet with GroupNorm; what works'),
        ('swin', '24x3', ['onnx', 'timm'], {}, 'what works: onnx, torch'),
        ('vit', '48x3', ['timm', 'onnx'], dict(img_size=40), 'whole cells of 16 pixels'),
        ('vit', '48x3', ['timm', 'torch'], dict(img_size=16), 'from 32 up'),
    ],
)
def test_a_combination_that_does_not_go_writes_nothing(
    family, subnet, formats, options, message, export_supernet, tmp_path, monkeypatch
):
    checkpoint = export_supernet(family, **options)
    for exporter in run.FORMATS.values():
        monkeypatch.delattr(exporter, 'write')  # before any file is written, not after some
    with pytest.raises(ExportError, match=message):
        export_subnets(checkpoint, [subnet], formats, tmp_path / 'out', ExportOptions(dynamic_size='torch' in formats))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('broken', 'existing'), [('weights', False), ('file', True), ('process', True), ('rename', False), ('rename', True)]
)
def test_what_is_wrong_is_found_and_leaves_nothing_behind(broken, existing, export_supernet, tmp_path, monkeypatch):
    out = tmp_path / 'out'
    if existing:
        out.mkdir()
        (out / 'poa_32x2.pt2').write_text('mine')
    before = {name: (tmp_path / name).read_bytes() for name in files_of(tmp_path)}

    def program(network, options):
        network.state['ln1.bias'] = network.state['ln1.bias'] + 1e-3
        return original(network, options)

    original = to_torch.program
    if broken == 'weights':
        monkeypatch.setattr(to_torch, 'program', program)
        monkeypatch.setattr(verify.Verification, '_tensors', tensors_before(verify.Verification._tensors))
    elif broken == 'file':
        monkeypatch.setattr(torch.export, 'save', lambda program, path, **options: path.write_bytes(b'garbage'))
    elif broken == 'process':
        monkeypatch.setattr(verify.standalone, '__file__', str(tmp_path / 'missing.py'))
    else:
        monkeypatch.setattr(verify.Verification, 'run', lambda self: [0.0])
        monkeypatch.setattr('os.replace', lambda *paths: (_ for _ in ()).throw(OSError('not permitted')))
    messages = dict(weights='differs by', file='cannot be loaded', process='failed', rename='not permitted')
    with pytest.raises((ExportError, OSError), match=messages[broken]):
        export_subnets(export_supernet('vit'), ['32x2'], ['torch'], out)
    assert {name: (tmp_path / name).read_bytes() for name in files_of(tmp_path)} == before
    assert out.exists() == existing


def tensors_before(function):
    """``Verification._tensors`` of the network whose weights were not yet changed."""

    def make(self, network, options):
        state = network.state
        network.state = dict(network.stock.state)
        try:
            return function(self, network, options)
        finally:
            network.state = state

    return make


def test_a_folder_of_another_checkpoint_stays_as_it_is(export_supernet, tmp_path):
    extract_subnets(export_supernet('vit'), ['32x2'], tmp_path, verify=False)
    before = files_of(tmp_path)
    with pytest.raises(CheckpointError, match='holds subnets of'):
        export_subnets(export_supernet('vit', 'bgr'), ['32x2'], ['torch'], tmp_path)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize(
    ('format', 'missing'), [('timm', 'timm'), ('huggingface', 'transformers'), ('onnx', 'onnxscript')]
)
def test_a_missing_library(format, missing, export_supernet, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(run, 'find_spec', lambda name: None if name == missing else found(name))
    with pytest.raises(ExportError, match=rf"format {format} needs {missing}.* pip install 'poa_mm\[export\]'"):
        export_subnets(export_supernet('vit'), ['32x2'], [format], tmp_path / 'out')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('format', ['huggingface', 'onnx', 'torch'])
def test_an_old_torch(format, export_supernet, tmp_path, monkeypatch):
    monkeypatch.setattr('poa_mm.compat._found_version', lambda name: '2.1.2')
    with pytest.raises(ExportError, match=f'format {format} needs torch .* or later'):
        export_subnets(export_supernet('vit'), ['32x2'], [format], tmp_path / 'out')
    assert not list(tmp_path.iterdir())
