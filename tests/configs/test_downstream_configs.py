"""The configs for COCO and ADE20K: what they build, what they train, and that they run."""

import copy
import json
import os
import re
import runpy
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, MODELS, PARAM_SCHEDULERS, TRANSFORMS, DefaultScope
from safetensors.torch import save_file

mmdet, mmseg = pytest.importorskip('mmdet'), pytest.importorskip('mmseg')

from poa_mm.checkpoint import CheckpointError, check_state
from poa_mm.datasets.scenes import write_scenes
from poa_mm.deploy.downstream import detector, linear_segmentor, resnet, segmentor, swin, vit
from poa_mm.elastic import Subnet
from poa_mm.engine.pretrained import load_pretrained
from poa_mm.engine.sync_bn import unsync_bn
from poa_mm.models import ElasticResNet, ElasticSwinTransformer, ElasticVisionTransformer

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs'
DETECTION = sorted((CONFIGS / 'detection').glob('*_coco.py'))
SEGMENTATION = sorted((CONFIGS / 'segmentation').glob('*_ade20k-512x512.py'))
SUBNETS = {
    'vit-s-p16': '384x12',
    'vit-b-p16': '768x12',
    'vit-l-p16': '1024x24',
    'swin-t': '96x6',
    'r50': '64x3-4-6-3',
}
FAMILIES = dict(vit=vit, swin=swin, r50=resnet)
OTHERS = [path for path in DETECTION + SEGMENTATION if '-vit-' not in path.name]
VIT_DETECTION = CONFIGS / 'detection' / 'cascade-mask-rcnn_poa-vit-s-p16_fpn_1x_coco.py'
VIT_LINEAR = CONFIGS / 'segmentation' / 'linear_poa-vit-s-p16_160k_ade20k-512x512.py'
VIT_UPERNET = CONFIGS / 'segmentation' / 'upernet_poa-vit-s-p16_160k_ade20k-512x512.py'


def in_scope(cfg):
    """Other tests must not find the library's default scope."""
    return DefaultScope.overwrite_default_scope(cfg.default_scope)


def build(cfg):
    """Without memory for the weights where mmpretrain's class can do without."""
    with in_scope(cfg), torch.device('meta' if 'VisionTransformer' in cfg.model.backbone.type else 'cpu'):
        return MODELS.build(cfg.model)


@cache
def parsed(path):
    return Config.fromfile(path)


def config(path):
    return copy.deepcopy(parsed(path))


def network_of(path):
    return re.search(r'poa-(vit-\w-p16|[^_]+)_', path.name)[1]


def subnet_of(path):
    return SUBNETS[network_of(path)]


def family_of(path):
    return network_of(path).split('-')[0]


@pytest.fixture(scope='module')
def paper_supernets():
    """Those of the shipped recipes and of the paper."""
    with torch.device('meta'):
        return dict(vit=ElasticVisionTransformer(arch='large'), swin=ElasticSwinTransformer(), r50=ElasticResNet())


def test_there_is_a_config_for_each_size_and_task():
    assert {path.stem for path in DETECTION} == {
        *(f'cascade-mask-rcnn_poa-vit-{size}-p16_fpn_{schedule}_coco' for size in 'bs' for schedule in ('1x', '3x')),
        *(f'cascade-mask-rcnn_poa-{name}_fpn_1x_coco' for name in ('swin-t', 'r50')),
    }
    assert {path.stem for path in SEGMENTATION} == {
        *(f'linear_poa-vit-{size}-p16_160k_ade20k-512x512' for size in 'bls'),
        *(f'upernet_poa-{name}_160k_ade20k-512x512' for name in ('vit-b-p16', 'vit-s-p16', 'swin-t', 'r50')),
    }


@pytest.mark.parametrize('path', DETECTION + SEGMENTATION, ids=lambda path: path.stem)
def test_builds_what_extraction_fills(path, paper_supernets):
    cfg = config(path)
    size = subnet_of(path)
    text = path.read_text()
    assert text.startswith('"""') and f'tools/dist_train.sh {path.relative_to(ROOT)} ' in text
    model = build(cfg)
    supernet = paper_supernets[family_of(path)]
    assert supernet.subnet_of(model.backbone) == Subnet.parse(size)
    assert cfg.model.backbone.init_cfg == dict(type='Pretrained', checkpoint=f'subnets/poa_{size}.safetensors')
    _, weights = supernet.extract(Subnet.parse(size))
    (hook,) = cfg.custom_hooks
    expected = model.backbone.state_dict()
    new = {key for key in expected if key.split('.')[0] in hook.new}
    assert {key.split('.')[0] for key in new} == (set(hook.new) if family_of(path) == 'swin' else set())
    check_state({key: expected[key] for key in expected.keys() - new}, weights, 'what extraction writes')
    with in_scope(cfg):
        for loader in (cfg.train_dataloader, cfg.val_dataloader):
            for transform in loader.dataset.pipeline:
                TRANSFORMS.build(transform)
        for hook in cfg.custom_hooks:
            HOOKS.build(hook)
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        for scheduler in cfg.param_scheduler:
            PARAM_SCHEDULERS.build(scheduler, default_args=dict(optimizer=wrapper))
    assert type(wrapper).__name__ == 'OptimWrapper', 'what --amp turns into AmpOptimWrapper'
    assert 'poa_mm' in cfg.custom_imports.imports
    assert cfg.auto_scale_lr.base_batch_size == 16 == 8 * cfg.train_dataloader.batch_size


EVERY = sorted([*(CONFIGS / 'detection').glob('*.py'), *(CONFIGS / 'segmentation').glob('*.py')])


@pytest.mark.parametrize('path', EVERY, ids=lambda path: path.stem)
def test_no_layer_needs_gpus_in_a_run_on_cpus(path):
    cfg = config(path)
    unsync_bn(cfg.model)
    layers = {type(module).__name__ for module in build(cfg).modules()}
    assert not {name for name in layers if 'Sync' in name}


@pytest.mark.parametrize('path', [DETECTION[0], *SEGMENTATION[:2]], ids=lambda path: path.stem)
def test_survives_the_dump_that_a_runner_makes(path, tmp_path):
    cfg = config(path)
    cfg.dump(tmp_path / 'config.py')
    again = Config.fromfile(tmp_path / 'config.py')
    assert again.to_dict() == cfg.to_dict()
    assert again.model == cfg.model


@pytest.mark.parametrize('path', sorted(CONFIGS.glob('*/*_scenes.py')), ids=lambda path: path.stem)
def test_small_configs_fit_the_subnets_of_their_pre_training(path):
    cfg = config(path)
    family, subnet = re.search(r'poa-(vit|resnet)-(\d+x[\d-]*\d)', path.name).groups()
    name = dict(vit='vitt_fmnist_rgb', resnet='resnet_fmnist_rgb')[family]
    pretraining = Config.fromfile(CONFIGS / 'poa' / f'{name}.py').model
    _, weights = MODELS.build(pretraining.backbone).extract(subnet)
    model = build(cfg)
    check_state(model.backbone.state_dict(), weights, 'what extraction writes')
    assert cfg.model.data_preprocessor.mean == pretraining.data_preprocessor.mean
    assert cfg.model.data_preprocessor.std == pretraining.data_preprocessor.std


def rates(cfg, model):
    """Learning rate and weight decay of every trained parameter by its name."""
    with in_scope(cfg):
        groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    names = {param: name for name, param in model.named_parameters()}
    return {names[param]: (group['lr'], group['weight_decay']) for group in groups for param in group['params']}


@pytest.mark.parametrize(('path', 'decay'), [(VIT_DETECTION, 0.75), (VIT_UPERNET, 0.65)], ids=['coco', 'ade20k'])
def test_layers_learn_the_slower_the_deeper_they_lie(path, decay):
    cfg = config(path)
    found = rates(cfg, build(cfg))
    for layer in range(12):
        lr, weight_decay = found[f'backbone.layers.{layer}.attn.qkv.weight']
        assert lr == pytest.approx(1e-4 * decay ** (12 - layer))
        assert weight_decay == 0.05
    assert found['backbone.patch_embed.projection.weight'] == (pytest.approx(1e-4 * decay**13), 0.05)
    heads = {name: values for name, values in found.items() if not name.startswith('backbone.')}
    assert {lr for lr, _ in heads.values()} == {1e-4}
    assert any(weight_decay == 0.05 for _, weight_decay in heads.values())
    for name, (_, weight_decay) in found.items():
        if re.search(r'bias$|\.ln\d\.|gamma|\.(cls_token|pos_embed)$', name):
            assert weight_decay == 0, name


@pytest.mark.parametrize('path', OTHERS, ids=lambda path: path.stem)
def test_layers_of_the_others_learn_alike(path):
    cfg = config(path)
    model = build(cfg)
    found = rates(cfg, model)
    assert {lr for lr, _ in found.values()} == {1e-4}
    flat = {name for name, param in model.named_parameters() if param.ndim == 1}
    undecayed = {name for name, (_, weight_decay) in found.items() if weight_decay == 0}
    tables = {name for name in found if name.endswith('relative_position_bias_table')}
    assert undecayed == flat | tables
    assert len(tables) == (12 if family_of(path) == 'swin' else 0)


def test_linear_configs_train_one_layer():
    for path in SEGMENTATION:
        if not path.name.startswith('linear'):
            continue
        cfg = config(path)
        trained = {name for name, param in build(cfg).named_parameters() if param.requires_grad}
        assert trained == {'decode_head.conv_seg.weight', 'decode_head.conv_seg.bias'}


def test_schedules():
    for path in DETECTION:
        cfg = config(path)
        epochs, milestones = (36, [27, 33]) if '_3x_' in path.name else (12, [9, 11])
        assert cfg.train_cfg.max_epochs == cfg.param_scheduler[-1].end == epochs
        assert cfg.param_scheduler[-1].milestones == milestones
    for path in SEGMENTATION:
        cfg = config(path)
        assert cfg.train_cfg.max_iters == cfg.param_scheduler[-1].end == 160_000


# --- weights ---------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def subnet_file(tmp_path_factory):
    """Maker of files of full size with random weights, as extraction writes them."""

    @cache
    def make(family, size):
        network = MODELS.build(FAMILIES[family](size))
        torch.manual_seed(0)
        for param in network.parameters():
            torch.nn.init.normal_(param, std=0.02)
        path = tmp_path_factory.mktemp('subnets') / f'poa_{size}.safetensors'
        save_file(network.state_dict(), path, metadata={'format': 'pt', 'subnet': size})
        return path

    return make


@pytest.mark.parametrize('path', [*DETECTION, *SEGMENTATION], ids=lambda path: path.stem)
def test_only_the_subnet_that_a_config_names_fits(path, subnet_file):
    cfg = config(path)
    backbone = cfg.model.backbone
    new = cfg.custom_hooks[0].new
    vits = ('vit', '384x12')
    if subnet_of(path) != '384x12':
        backbone.init_cfg.checkpoint = str(subnet_file(*vits))
        with pytest.raises(CheckpointError, match='the file holds subnet 384x12'):
            load_pretrained(MODELS.build(backbone), new)
    if subnet_of(path) == '384x12' or path in OTHERS:
        backbone.init_cfg.checkpoint = str(subnet_file(family_of(path), subnet_of(path)))
        load_pretrained(MODELS.build(backbone), new)


# --- whole models ----------------------------------------------------------------------------


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('scenes') / 'data'
    write_scenes(folder, source='digits', train=4, val=2, size=(96, 128), names='library')
    return folder


ON_SCENES = {
    'detection': [
        'train_dataloader.dataset.data_root={data}/coco/',
        'val_dataloader.dataset.data_root={data}/coco/',
        'val_evaluator.ann_file={data}/coco/annotations/instances_val2017.json',
        'train_dataloader.dataset.pipeline.2.scales=[(128,96),(160,120)]',
        'val_dataloader.dataset.pipeline.1.scale=(128,96)',
        'train_cfg.max_epochs=1',
        *(f'model.train_cfg.rcnn.{stage}.sampler.num=16' for stage in range(3)),
        'model.test_cfg.rpn.max_per_img=16',
        'model.test_cfg.rcnn.max_per_img=8',
        'model.test_cfg.rcnn.score_thr=0.0',  # or an untrained network might find nothing, which has no score
    ],
    'segmentation': [
        'train_dataloader.dataset.data_root={data}/ade/ADEChallengeData2016',
        'val_dataloader.dataset.data_root={data}/ade/ADEChallengeData2016',
        'model.data_preprocessor.size=(96,96)',
        'train_dataloader.dataset.pipeline.2.scale=(192,96)',
        'train_dataloader.dataset.pipeline.3.crop_size=(96,96)',
        'val_dataloader.dataset.pipeline.1.scale=(192,96)',
        'train_cfg.max_iters=2',
        'train_cfg.val_interval=2',
    ],
}
ON_CPU = [
    'train_dataloader.num_workers=0',
    'train_dataloader.persistent_workers=False',
    'val_dataloader.num_workers=0',
    'val_dataloader.persistent_workers=False',
    'default_hooks.logger.interval=1',
    'default_hooks.checkpoint=None',
]


def options(task, data, *more):
    return ['--cfg-options', *(text.format(data=data) for text in ON_SCENES[task]), *ON_CPU, *more]


def scores(work_dir):
    """Losses of the iterations and the scores of the evaluation."""
    (log,) = work_dir.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line['loss'] for line in lines if 'loss' in line], lines[-1]


def check_run(work_dir, task):
    losses, last = scores(work_dir)
    assert len(losses) == 2
    assert all(0 < loss < 1000 for loss in losses)
    assert {'coco/bbox_mAP', 'coco/segm_mAP'} <= last.keys() if task == 'detection' else 'mIoU' in last


LEAF = """
_base_ = {base!r}

from poa_mm.deploy.downstream import {task}, resnet, swin, vit

model = {task}({backbone}{channels})
"""
TINY = dict(
    vit="vit('48x4', head_dim=16, patch_size=8, img_size=64)",
    swin="swin('24x3', depths=(1, 1, 4, 1), head_dim=8, img_size=64, window_size=4)",
    resnet="resnet('12x3-2-1-3', stem_channels=8, base_channels=8, num_groups=4)",
)
SMALL_HEADS = """
model |= dict(
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=[dict(h, in_channels=16, conv_out_channels=16, fc_out_channels=16) for h in _base_.bbox_heads],
        mask_roi_extractor=dict(out_channels=16),
        mask_head=dict(in_channels=16, conv_out_channels=16),
    ),
)
"""
SMALL_HEAD = """
model['decode_head']['channels'] = 16
"""


TASKS = {
    detector: ('detection/_base_/cascade-mask-rcnn_fpn_1x_coco.py', ', channels=16', SMALL_HEADS),
    segmentor: ('segmentation/_base_/upernet_160k_ade20k-512x512.py', '', SMALL_HEAD),
    linear_segmentor: ('segmentation/_base_/linear_160k_ade20k-512x512.py', '', ''),
}


@pytest.mark.parametrize(
    ('task', 'family'),
    [
        (detector, 'vit'),
        (detector, 'swin'),
        (segmentor, 'vit'),
        (segmentor, 'resnet'),
        (linear_segmentor, 'vit'),
        (linear_segmentor, 'swin'),
    ],
)
def test_a_tiny_backbone_trains_and_is_scored(task, family, scenes, tmp_path, monkeypatch):
    """Everything as shipped but the backbone and, for the time they take, the widths of the heads."""
    base, channels, more = TASKS[task]
    leaf = tmp_path / 'config.py'
    settings = dict(base=str(CONFIGS / base), task=task.__name__, backbone=TINY[family], channels=channels)
    leaf.write_text(LEAF.format(**settings) + more)
    own_log = f'visualizer.name={task.__name__}_{family}'  # in one process, equal names share a log
    more = options(base.split('/')[0], scenes, own_log)
    command = ['train.py', str(leaf), '--work-dir', str(tmp_path / 'work'), *more]
    monkeypatch.setattr(sys, 'argv', command)
    with DefaultScope.overwrite_default_scope('mmpretrain'):  # restores what there was
        runpy.run_path(str(ROOT / 'tools' / 'train.py'), run_name='__main__')
    check_run(tmp_path / 'work', base.split('/')[0])


STOCK_TOOLS = dict(detection=mmdet, segmentation=mmseg)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('path', 'tool'),
    [
        *((path, tool) for path in (VIT_DETECTION, VIT_LINEAR, VIT_UPERNET) for tool in ('own', 'mim')),
        *((path, 'own') for path in OTHERS),
    ],
    ids=lambda value: getattr(value, 'stem', value),
)
def test_shipped_configs_run_with_reduced_images(path, tool, subnet_file, scenes, tmp_path):
    """In a process of its own, as users start it: by tools/train.py and by what ``mim train`` runs."""
    task = path.parent.name
    mim = Path(STOCK_TOOLS[task].__path__[0]) / '.mim'
    trainer = (ROOT if tool == 'own' else mim) / 'tools' / 'train.py'
    weights = f'model.backbone.init_cfg.checkpoint={subnet_file(family_of(path), subnet_of(path))}'
    command = [sys.executable, trainer, path, '--work-dir', tmp_path, *options(task, scenes, weights)]
    env = os.environ | {'PYTHONPATH': str(ROOT)}
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    check_run(tmp_path, task)
