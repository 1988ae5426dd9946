import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import poa_mm
from poa_mm.checkpoint import CheckpointError, describe_supernet, file_sha256, load_teacher
from poa_mm.deploy import extract
from poa_mm.deploy.extract import LIBRARIES, compare_with_supernet, extract_subnets, list_subnets
from poa_mm.elastic import Subnet
from poa_mm.engine.pretrained import load_pretrained

SUBNETS = [f'{width}x{depth}' for width in (32, 48, 64) for depth in (2, 3, 4)]

# Runs without poa_mm: golden features of every subnet from the files alone, in mmpretrain's own network.
STOCK = """
import sys
from pathlib import Path
import torch
from mmengine.config import Config
from mmpretrain.models.backbones import VisionTransformer
from mmpretrain.registry import MODELS
from safetensors.torch import load_file

golden, folders = load_file(sys.argv[1]), {'safetensors': Path(sys.argv[2]), 'pth': Path(sys.argv[3])}

def build(format, name):
    path = folders[format] / f'poa_{name}.{format}'
    cfg = Config.fromfile(path.with_suffix('.py'), import_custom_modules=format == 'pth')
    cfg.model.backbone.out_type = 'raw'
    if format == 'pth':  # by mmengine's own means, from the config
        model = MODELS.build(cfg.model)
        model.init_weights()
        model.backbone.load_state_dict(torch.load(path, weights_only=True)['state_dict'], strict=True)
        return model.backbone
    cfg.model.backbone.pop('init_cfg')
    network = MODELS.build(cfg.model.backbone)
    network.load_state_dict(load_file(path), strict=True)
    return network

for name in sys.argv[4:]:
    for format in folders:
        network = build(format, name)
        assert type(network) is VisionTransformer
        network.eval()
        with torch.no_grad():
            (globals_,) = network(golden['batch.collated_global_crops'])
            (locals_,) = network(golden['batch.collated_local_crops'])
        for key, found in {
            'global.cls': globals_[:, 0], 'global.patch': globals_[:, 1:], 'local.cls': locals_[:, 0]
        }.items():
            torch.testing.assert_close(found, golden[f'features.{name}.{key}'], rtol=0, atol=1e-4)
assert not [name for name in sys.modules if name.startswith('poa_mm')]
"""


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else None


@pytest.fixture
def supernet(checkpoint):
    return load_teacher(checkpoint)[0]


def test_stock_networks_compute_the_golden_features_without_poa_mm(golden, golden_checkpoint, tmp_path):
    tensors, _ = golden('vit_step')
    save_file({k: v for k, v in tensors.items() if k.startswith(('batch.', 'features.'))}, tmp_path / 'golden')
    folders = [tmp_path / format for format in ('safetensors', 'pth')]
    for folder in folders:
        extract_subnets(golden_checkpoint, None, folder, folder.name)
    command = [sys.executable, '-c', STOCK, tmp_path / 'golden', *folders, *SUBNETS]
    env = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'} | {'OMP_NUM_THREADS': '1'}
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize('format', ['safetensors', 'pth'])
def test_config_builds_and_fills_the_model_wherever_the_folder_lies(extracted, tmp_path, format, same_tensors):
    folder = shutil.copytree(extracted[format], tmp_path / 'moved to here')
    cfg = Config.fromfile(folder / 'poa_48x3.py')
    assert cfg.default_scope == 'mmpretrain'
    assert ('custom_imports' in cfg) == (format == 'safetensors')
    assert cfg.data_preprocessor == dict(mean=[1.5, 2.5, 3.5], std=[4.0, 5.0, 6.0], to_rgb=True, num_classes=1000)
    model = MODELS.build(dict(cfg.model, data_preprocessor=cfg.data_preprocessor))
    model.init_weights()
    path = folder / f'poa_48x3.{format}'
    state = load_file(path) if format == 'safetensors' else torch.load(path, weights_only=True)['state_dict']
    same_tensors(model.backbone.state_dict(), state)
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 1000)


def test_manifest(checkpoint, extracted):
    entries = json.loads((extracted['pth'] / 'manifest.json').read_text())
    assert [entry['subnet'] for entry in entries] == SUBNETS
    assert set(contents(extracted['pth'])) == {
        'manifest.json', *(f'poa_{name}.{suffix}' for name in SUBNETS for suffix in ('pth', 'py'))
    }  # fmt: skip
    for entry in entries:
        state = torch.load(extracted['pth'] / entry['file'], weights_only=True)['state_dict']
        assert entry['params'] == sum(tensor.numel() for tensor in state.values())
        assert entry['flops'] > 0
        assert entry['max_abs_diff'] <= 1e-5
        assert entry['image_size'] == [64, 64]
        assert entry['format'] == 'pth'
        assert entry['source'] == 'poa.pth'
        assert entry['source_sha256'] == file_sha256(checkpoint)
        assert entry['poa_mm'] == poa_mm.__version__


def test_weights_say_where_they_come_from(checkpoint, extracted):
    expected = {
        'subnet': '32x2',
        'source': 'poa.pth',
        'source_sha256': file_sha256(checkpoint),
        'poa_mm': poa_mm.__version__,
    }
    found = torch.load(extracted['pth'] / 'poa_32x2.pth', weights_only=True)['meta']
    with safe_open(extracted['safetensors'] / 'poa_32x2.safetensors', 'pt') as file:
        assert file.metadata() == {'format': 'pt', **found}
    backbone, normalisation = json.loads(found.pop('backbone')), json.loads(found.pop('data_preprocessor'))
    assert found == expected
    assert normalisation == dict(mean=[1.5, 2.5, 3.5], std=[4.0, 5.0, 6.0], to_rgb=True)
    config = Config.fromfile(extracted['pth'] / 'poa_32x2.py').model.backbone.to_dict()
    config.pop('init_cfg')
    assert backbone == json.loads(json.dumps(config))


def test_later_extractions_join_the_manifest(checkpoint, tmp_path, same_tensors):
    extract_subnets(checkpoint, ['48x3'], tmp_path)
    first = load_file(tmp_path / 'poa_48x3.safetensors')
    extract_subnets(checkpoint, [Subnet(48, 3), '32x4'], tmp_path, verify=False)
    extract_subnets(checkpoint, ['most', '64x4'], tmp_path, 'pth')
    entries = json.loads((tmp_path / 'manifest.json').read_text())
    assert [entry['file'] for entry in entries] == [
        'poa_32x4.safetensors', 'poa_48x3.safetensors', 'poa_64x4.pth'
    ]  # fmt: skip
    assert [entry['max_abs_diff'] is None for entry in entries] == [True, True, False]
    same_tensors(load_file(tmp_path / 'poa_48x3.safetensors'), first)


def test_files_are_as_readable_as_any(checkpoint, tmp_path):
    extract_subnets(checkpoint, ['32x2'], tmp_path, verify=False)
    (tmp_path / 'any').touch()
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


@pytest.mark.parametrize('subnet', ['40x3', '64x5', 'small', '64', ''])
def test_a_subnet_outside_the_space_writes_nothing(checkpoint, tmp_path, subnet):
    with pytest.raises(ValueError, match=r'widths 32, 48, 64; depths 2, 3, 4; aliases little=32x2'):
        extract_subnets(checkpoint, ['48x3', subnet], tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('subnets', [[], ()])
def test_no_subnet_writes_nothing(checkpoint, tmp_path, subnets):
    with pytest.raises(ValueError, match='no subnet to extract; name some'):
        extract_subnets(checkpoint, subnets, tmp_path / 'new')
    assert not list(tmp_path.iterdir())


def test_one_subnet_and_one_library_by_themselves(checkpoint, tmp_path):
    (entry,) = extract_subnets(checkpoint, '32x4', tmp_path, libraries='mmseg', verify=False)
    assert entry['configs'] == ['poa_32x4.py', 'poa_32x4_mmseg.py']
    with pytest.raises(ValueError, match="library 'mmdetection' is not one of mmdet, mmseg, mmpretrain"):
        extract_subnets(checkpoint, '32x4', tmp_path, libraries='mmdetection')


def test_a_config_goes_on_loading_the_file_that_it_loads(checkpoint, tmp_path):
    extract_subnets(checkpoint, ['32x2'], tmp_path, verify=False)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(
        ValueError, match=r'holds poa_32x2.safetensors, which the configs there load; .* another folder'
    ):
        extract_subnets(checkpoint, None, tmp_path, format='pth', verify=False)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    extract_subnets(checkpoint, ['48x2'], tmp_path, format='pth', verify=False)
    assert (tmp_path / 'poa_48x2.pth').is_file()


@pytest.mark.parametrize('out', ['out', 'out/below'])
def test_an_out_dir_that_is_a_file(tmp_path, out):
    (tmp_path / 'out').write_text('mine')
    with pytest.raises(NotADirectoryError, match=r'a folder is needed to write to, and .*out is a file'):
        extract_subnets(tmp_path / 'not_even_read.pth', None, tmp_path / out)
    assert (tmp_path / 'out').read_text() == 'mine'


def test_unknown_format(checkpoint, tmp_path):
    with pytest.raises(ValueError, match=r'onnx.*safetensors, pth'):
        extract_subnets(checkpoint, None, tmp_path / 'out', 'onnx')
    assert not (tmp_path / 'out').exists()


def test_a_folder_of_another_checkpoint_stays_as_it_is(checkpoint, tmp_path):
    extract_subnets(checkpoint, ['32x2'], tmp_path / 'out')
    content = torch.load(checkpoint, weights_only=True)
    content['state_dict']['teacher.backbone.cls_token'] += 1
    torch.save(content, tmp_path / 'other.pth')
    before = contents(tmp_path / 'out')
    with pytest.raises(CheckpointError, match=r'holds subnets of poa\.pth .* not of other\.pth'):
        extract_subnets(tmp_path / 'other.pth', ['32x2'], tmp_path / 'out')
    assert contents(tmp_path / 'out') == before


@pytest.mark.parametrize('text', ['', 'no json', '{"a": 1}', '[1]', '[{"file": "x"}]'])
def test_broken_manifest(checkpoint, tmp_path, text):
    (tmp_path / 'manifest.json').write_text(text)
    with pytest.raises(CheckpointError, match='manifest'):
        extract_subnets(checkpoint, ['32x2'], tmp_path)
    assert set(contents(tmp_path)) == {'manifest.json'}


def fail_third(function, error):
    """``function``, failing at its third call."""
    calls = []

    def run(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise error
        return function(*args, **kwargs)

    return run


@pytest.mark.parametrize(
    ('module', 'name', 'error'),
    [
        (extract, 'compare_with_supernet', CheckpointError('differs')),
        (extract, '_write_weights', OSError('no space left')),
        (extract, '_write_weights', KeyboardInterrupt()),
        (os, 'replace', OSError('not permitted')),
    ],
)
@pytest.mark.parametrize('existing', [False, True])
def test_a_failure_in_the_middle_leaves_nothing_behind(
    checkpoint, tmp_path, monkeypatch, module, name, error, existing
):
    out = tmp_path / 'out'
    if existing:
        out.mkdir()
        (out / 'notes.txt').write_text('mine')
    before = contents(out)
    monkeypatch.setattr(module, name, fail_third(getattr(module, name), error))
    with pytest.raises(type(error)):
        extract_subnets(checkpoint, ['32x2', '32x3', '32x4', '48x2'], out)
    assert contents(out) == before


@pytest.mark.parametrize('change', [1e-3, float('nan')])
def test_verification_finds_a_wrong_weight(supernet, change):
    config, state = supernet.extract(Subnet(48, 3))
    assert compare_with_supernet(supernet, Subnet(48, 3), config, state) <= 1e-5
    state['ln1.bias'][7] += change
    with pytest.raises(CheckpointError, match='48x3 differs'):
        compare_with_supernet(supernet, Subnet(48, 3), config, state)


def test_progress_is_given_the_subnets(checkpoint, tmp_path):
    seen = []

    def progress(subnets):
        for subnet in subnets:
            yield subnet
            seen.append((len(subnets), str(subnet)))

    extract_subnets(checkpoint, ['most', 'little'], tmp_path, verify=False, progress=progress)
    assert seen == [(2, '64x4'), (2, '32x2')]


def test_list_subnets(checkpoint, supernet):
    rows = list_subnets(checkpoint)
    assert [str(row.subnet) for row in rows] == SUBNETS
    assert [row.aliases for row in rows] == [('little',), *[()] * 7, ('most',)]
    assert (rows[4].params, rows[4].flops) == supernet.cost(Subnet(48, 3))


# --- fine-tuning in a library ----------------------------------------------------------------
PREPROCESSORS = dict(mmdet='DetDataPreprocessor', mmseg='SegDataPreProcessor', mmpretrain='ClsDataPreprocessor')


@pytest.fixture(scope='session')
def downstream(checkpoint, tmp_path_factory):
    """Folder with one subnet and the configs for all libraries, not where it was written."""
    folder = tmp_path_factory.mktemp('downstream')
    extract_subnets(checkpoint, ['48x4'], folder / 'first', libraries=LIBRARIES)
    return Path(shutil.move(folder / 'first', folder / 'moved'))


def downstream_config(folder, library):
    pytest.importorskip(library)
    return Config.fromfile(folder / f'poa_48x4_{library}.py')


def in_scope(cfg):
    return DefaultScope.overwrite_default_scope(cfg.default_scope)


@pytest.mark.parametrize('library', LIBRARIES)
def test_backbone_of_a_library_computes_what_the_supernet_does(downstream, supernet, library):
    cfg = downstream_config(downstream, library)
    assert cfg.default_scope == library
    with in_scope(cfg):
        backbone = MODELS.build(cfg.model.backbone)
    load_pretrained(backbone)
    backbone.eval()
    images = torch.randn(2, 3, 48, 80)  # another size than that of the pre-training
    supernet.out_indices, supernet.out_type = ([3], 'cls_token') if library == 'mmpretrain' else (range(4), 'featmap')
    with torch.no_grad():
        expected, found = supernet(images, Subnet(48, 4)), backbone(images)
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize('library', LIBRARIES)
def test_images_are_normalised_as_in_pre_training(downstream, library):
    cfg = downstream_config(downstream, library)
    preprocessor = cfg.model.get('data_preprocessor', cfg.get('data_preprocessor'))
    with in_scope(cfg):
        preprocessor = MODELS.build({'type': PREPROCESSORS[library], **preprocessor})
    image = torch.randint(256, (3, 64, 64), dtype=torch.uint8)
    data = dict(inputs=[image], data_samples=None)
    mean, std = torch.tensor([1.5, 2.5, 3.5]), torch.tensor([4.0, 5.0, 6.0])
    expected = (image.flip(0) - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    found = preprocessor(data if library != 'mmpretrain' else dict(data, inputs=image[None]))['inputs']
    torch.testing.assert_close(found[0], expected)


@pytest.mark.parametrize('library', LIBRARIES)
def test_heads_fit_the_subnet(downstream, library):
    cfg = downstream_config(downstream, library)
    with in_scope(cfg), torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert type(model.backbone).__module__ == 'mmpretrain.models.backbones.vision_transformer'
    assert model.backbone.embed_dims == 48
    assert cfg.model.backbone.init_cfg.checkpoint == str(downstream / 'poa_48x4.safetensors')
    assert [hook.type for hook in cfg.custom_hooks] == ['StrictPretrainedHook']


FAMILIES = [('vit', '48x4'), ('swin', '24x3'), ('resnet', '8x3-4-6-3'), ('resnet', '12x3-2-1-3')]


@pytest.mark.parametrize(('family', 'subnet'), FAMILIES)
def test_configs_of_every_family_take_the_weights_and_compute_what_the_supernet_does(
    family, subnet, supernets, supernet_file, tmp_path
):
    for library in LIBRARIES:
        pytest.importorskip(library)
    extract_subnets(supernet_file(family), [subnet], tmp_path, libraries=LIBRARIES)
    supernet, _ = load_teacher(supernet_file(family))
    images = torch.randn(2, 3, 64, 96)
    for library in LIBRARIES:
        cfg = Config.fromfile(tmp_path / f'poa_{subnet}_{library}.py')
        with in_scope(cfg):
            model = MODELS.build(cfg.model)
        load_pretrained(model, cfg.custom_hooks[0].get('new', ()))
        model.backbone.eval()
        with torch.no_grad():
            features = supernet.extract_features(images, supernet.space.parse(subnet))
            for found, expected in zip(supernet.plain_features(model.backbone, images), features):
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert (cfg.model.backbone.drop_path_rate > 0) == (family != 'resnet')
        decay = cfg.optim_wrapper.paramwise_cfg.layer_decay_rate
        assert decay < 1 if family == 'vit' else decay == 1
        build_optim_wrapper(model, cfg.optim_wrapper)


def test_mmengine_itself_reads_the_weights(downstream, same_tensors):
    model = MODELS.build(downstream_config(downstream, 'mmpretrain').model)
    model.init_weights()
    same_tensors(model.backbone.state_dict(), load_file(downstream / 'poa_48x4.safetensors'))


def test_configs_are_in_the_manifest(checkpoint, downstream, tmp_path):
    (entry,) = json.loads((downstream / 'manifest.json').read_text())
    assert entry['configs'] == ['poa_48x4.py', *(f'poa_48x4_{library}.py' for library in LIBRARIES)]
    assert {*entry['configs'], entry['file'], 'manifest.json'} == set(contents(downstream))
    (entry,) = extract_subnets(checkpoint, ['48x4'], tmp_path, libraries=['mmseg', 'mmseg'], verify=False)
    assert entry['configs'] == ['poa_48x4.py', 'poa_48x4_mmseg.py']


def another_checkpoint(config, tmp_path, **options):
    config = config.model
    config.backbone.update(options)
    path = tmp_path / 'another.pth'
    torch.save({'state_dict': MODELS.build(config).state_dict(), 'poa': describe_supernet(config)}, path)
    return path


@pytest.mark.parametrize(
    ('options', 'subnet', 'libraries', 'message'),
    [
        (dict(in_channels=1), '48x4', ['mmdet'], r'mmdet read colour images .* a supernet for 1'),
        (dict(patch_size=32), '48x4', ['mmpretrain', 'mmseg'], r'patch_size \(32, 32\)'),
        ({}, '48x3', ['mmdet'], '3 blocks'),
        ({}, '48x4', ['mmpose'], "'mmpose' is not one of mmdet, mmseg, mmpretrain"),
    ],
)
def test_what_a_library_cannot_use_is_not_written(config, tmp_path, options, subnet, libraries, message):
    path = another_checkpoint(config, tmp_path, **options)
    with pytest.raises(ValueError, match=message):
        extract_subnets(path, ['48x4', subnet], tmp_path / 'out', libraries=libraries)
    assert not (tmp_path / 'out').exists()


def test_stages_of_other_strides_are_of_no_use_to_a_library(supernets, tmp_path):
    backbone = supernets['swin'] | dict(patch_size=2)
    state = {f'teacher.backbone.{key}': value for key, value in MODELS.build(backbone).state_dict().items()}
    torch.save({'state_dict': state, 'poa': describe_supernet(dict(backbone=backbone))}, tmp_path / 'poa.pth')
    with pytest.raises(ValueError, match=r'strides \(2, 4, 8, 16\); valid: \(4, 8, 16, 32\)'):
        extract_subnets(tmp_path / 'poa.pth', ['16x2'], tmp_path / 'out', libraries=['mmpretrain', 'mmdet'])
    assert not (tmp_path / 'out').exists()


def test_installed_without_configs(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(extract, 'CONFIGS', tmp_path / 'configs')
    with pytest.raises(FileNotFoundError, match=r'cascade-mask-rcnn_fpn_1x_coco\.py.* pip install -e'):
        extract_subnets(checkpoint, ['48x4'], tmp_path / 'out', libraries=['mmdet'])
    assert not (tmp_path / 'out').exists()
