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

import mmdet
import mmseg
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, MODELS, PARAM_SCHEDULERS, TRANSFORMS, DefaultScope
from safetensors.torch import save_file

from poa_mm.datasets.scenes import write_scenes
from poa_mm.deploy.downstream import detector, linear_segmentor, segmentor, vit
from poa_mm.elastic import Subnet
from poa_mm.engine.checkpoint import CheckpointError, check_state
from poa_mm.engine.pretrained import load_pretrained
from poa_mm.models import ElasticVisionTransformer

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs'
DETECTION = sorted((CONFIGS / 'detection').glob('*_coco.py'))
SEGMENTATION = sorted((CONFIGS / 'segmentation').glob('*_ade20k-512x512.py'))
SUBNETS = dict(s='384x12', b='768x12', l='1024x24')


def in_scope(cfg):
    """Other tests must not find the library's default scope."""
    return DefaultScope.overwrite_default_scope(cfg.default_scope)


def build(cfg, device='cpu'):
    with in_scope(cfg), torch.device(device):
        return MODELS.build(cfg.model)


@cache
def parsed(path):
    return Config.fromfile(path)


def config(path):
    return copy.deepcopy(parsed(path))


def subnet_of(path):
    return SUBNETS[re.search(r'poa-vit-(\w)-p16', path.name)[1]]


@pytest.fixture(scope='module')
def vitl():
    """The supernet of the shipped recipe."""
    with torch.device('meta'):
        return ElasticVisionTransformer(arch='large')


def test_there_is_a_config_for_each_size_and_task():
    assert [path.stem for path in DETECTION] == [
        f'cascade-mask-rcnn_poa-vit-{size}-p16_fpn_{schedule}_coco' for size in 'bs' for schedule in ('1x', '3x')
    ]
    assert [path.stem for path in SEGMENTATION] == [
        f'{head}_poa-vit-{size}-p16_160k_ade20k-512x512' for head, sizes in (('linear', 'bls'), ('upernet', 'bs'))
        for size in sizes
    ]  # fmt: skip


@pytest.mark.parametrize('path', DETECTION + SEGMENTATION, ids=lambda path: path.stem)
def test_builds_what_extraction_fills(path, vitl):
    cfg = config(path)
    size = subnet_of(path)
    text = path.read_text()
    assert text.startswith('"""') and f'tools/dist_train.sh {path.relative_to(ROOT)} ' in text
    model = build(cfg, 'meta')
    width, depth = map(int, size.split('x'))
    assert (model.backbone.embed_dims, model.backbone.num_layers) == (width, depth)
    assert cfg.model.backbone.init_cfg == dict(type='Pretrained', checkpoint=f'subnets/poa_{size}.safetensors')
    _, weights = vitl.extract(Subnet.parse(size))
    check_state(model.backbone.state_dict(), weights, 'what extraction writes')
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


@pytest.mark.parametrize('path', [DETECTION[0], SEGMENTATION[0], SEGMENTATION[3]], ids=lambda path: path.stem)
def test_survives_the_dump_that_a_runner_makes(path, tmp_path):
    cfg = config(path)
    cfg.dump(tmp_path / 'config.py')
    again = Config.fromfile(tmp_path / 'config.py')
    assert again.to_dict() == cfg.to_dict()
    assert again.model == cfg.model


@pytest.mark.parametrize('path', sorted(CONFIGS.glob('*/*_scenes.py')), ids=lambda path: path.stem)
def test_small_configs_fit_the_subnets_of_their_pre_training(path):
    cfg = config(path)
    pretraining = Config.fromfile(CONFIGS / 'poa' / 'vitt_fmnist_rgb.py').model
    subnet = re.search(r'poa-vit-(\d+x\d+)-p8', path.name)[1]
    _, weights = MODELS.build(pretraining.backbone).extract(subnet)
    model = build(cfg)
    check_state(model.backbone.state_dict(), weights, 'what extraction writes')
    assert cfg.model.data_preprocessor.mean == pretraining.data_preprocessor.mean
    assert cfg.model.data_preprocessor.std == pretraining.data_preprocessor.std


def rates(cfg):
    """Learning rate and weight decay of every trained parameter by its name."""
    model = build(cfg, 'meta')
    with in_scope(cfg):
        groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    names = {param: name for name, param in model.named_parameters()}
    return {names[param]: (group['lr'], group['weight_decay']) for group in groups for param in group['params']}


@pytest.mark.parametrize(('path', 'decay'), [(DETECTION[2], 0.75), (SEGMENTATION[4], 0.65)], ids=['coco', 'ade20k'])
def test_layers_learn_the_slower_the_deeper_they_lie(path, decay):
    found = rates(config(path))
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


def test_linear_configs_train_one_layer():
    for path in SEGMENTATION[:3]:
        cfg = config(path)
        trained = {name for name, param in build(cfg, 'meta').named_parameters() if param.requires_grad}
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
def subnets(tmp_path_factory):
    """Folder with a ViT-S, as extraction writes it."""
    folder = tmp_path_factory.mktemp('subnets')
    config = {key: value for key, value in vit('384x12').items() if key != 'init_cfg'}
    torch.manual_seed(0)
    state = {name: torch.randn_like(value) for name, value in MODELS.build(config).state_dict().items()}
    save_file(state, folder / 'poa_384x12.safetensors', metadata={'format': 'pt', 'subnet': '384x12'})
    return folder


@pytest.mark.parametrize('path', DETECTION[2:] + SEGMENTATION, ids=lambda path: path.stem)
def test_only_the_subnet_that_a_config_names_fits(path, subnets):
    backbone = config(path).model.backbone
    backbone.init_cfg.checkpoint = str(subnets / 'poa_384x12.safetensors')
    network = MODELS.build(backbone)
    if subnet_of(path) == '384x12':
        load_pretrained(network)
    else:
        with pytest.raises(CheckpointError, match='the file holds subnet 384x12'):
            load_pretrained(network)


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

from poa_mm.deploy.downstream import {task}, vit

model = {task}(vit('48x4', head_dim=16, patch_size=8, img_size=64){channels})
"""
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


@pytest.mark.parametrize(
    ('base', 'task', 'channels', 'more'),
    [
        ('detection/_base_/cascade-mask-rcnn_fpn_1x_coco.py', detector, ', channels=16', SMALL_HEADS),
        ('segmentation/_base_/upernet_160k_ade20k-512x512.py', segmentor, '', SMALL_HEAD),
        ('segmentation/_base_/linear_160k_ade20k-512x512.py', linear_segmentor, '', ''),
    ],
    ids=['detector', 'segmentor', 'linear_segmentor'],
)
def test_a_tiny_backbone_trains_and_is_scored(base, task, channels, more, scenes, tmp_path, monkeypatch):
    """Everything as shipped but the backbone and, for the time they take, the widths of the heads."""
    leaf = tmp_path / 'config.py'
    leaf.write_text(LEAF.format(base=str(CONFIGS / base), task=task.__name__, channels=channels) + more)
    own_log = f'visualizer.name={task.__name__}'  # in one process, equal names share a log
    more = options(base.split('/')[0], scenes, own_log)
    command = ['train.py', str(leaf), '--work-dir', str(tmp_path / 'work'), *more]
    monkeypatch.setattr(sys, 'argv', command)
    with DefaultScope.overwrite_default_scope('mmpretrain'):  # restores what there was
        runpy.run_path(str(ROOT / 'tools' / 'train.py'), run_name='__main__')
    check_run(tmp_path / 'work', base.split('/')[0])


STOCK_TOOLS = dict(detection=mmdet, segmentation=mmseg)


@pytest.mark.slow
@pytest.mark.parametrize('tool', ['own', 'mim'])
@pytest.mark.parametrize('path', [DETECTION[2], SEGMENTATION[2], SEGMENTATION[4]], ids=lambda path: path.stem)
def test_shipped_configs_run_with_reduced_images(path, tool, subnets, scenes, tmp_path):
    """In a process of its own, as users start it: by tools/train.py and by what ``mim train`` runs."""
    task = path.parent.name
    mim = Path(STOCK_TOOLS[task].__path__[0]) / '.mim'
    trainer = (ROOT if tool == 'own' else mim) / 'tools' / 'train.py'
    weights = f'model.backbone.init_cfg.checkpoint={subnets}/poa_384x12.safetensors'
    command = [sys.executable, trainer, path, '--work-dir', tmp_path, *options(task, scenes, weights)]
    env = os.environ | {'PYTHONPATH': str(ROOT)}
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert subnet_of(path) == '384x12'
    check_run(tmp_path, task)
