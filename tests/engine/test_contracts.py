import itertools
import logging
import random
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.runner import Runner
from torch import nn

from poa_mm.engine import contracts
from poa_mm.engine.contracts import check_contracts, check_recorded_classes, checkpoint_size

TOOLS = Path(__file__).parents[2] / 'tools'
NUMBERS = itertools.count()
CONFIG = """
default_scope = 'mmpretrain'
custom_imports = dict(imports=['poa_mm'])
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(mean=[0.0] * 3, std=[255.0] * 3),
    backbone=dict(type='VisionTransformer', arch=dict(
        embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32), img_size=8, patch_size=4),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=16, loss=dict(type='CrossEntropyLoss')))
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
def loader(folder):
    return dict(batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
                dataset=dict(type='CustomDataset', data_prefix=folder, pipeline=pipeline, serialize_data=False))
train_dataloader, val_dataloader, test_dataloader = loader('train'), loader('val'), loader('val')
val_evaluator = test_evaluator = dict(type='Accuracy')
val_cfg = test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=1, val_interval=10)
log_processor = dict(by_epoch=False)
default_hooks = dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1))
log_level = 'ERROR'
"""


def folders(name, *classes):
    for number, kind in enumerate(classes):
        Path(name, kind).mkdir(parents=True)
        cv2.imwrite(f'{name}/{kind}/{number}.png', np.full((8, 8, 3), number, np.uint8))


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Maker of configs; the working directory is where their data are."""
    monkeypatch.chdir(tmp_path)
    Path('c.py').write_text(CONFIG)
    init_default_scope('mmpretrain')

    def make(**options):
        cfg = Config.fromfile('c.py')
        cfg.merge_from_dict(options)
        cfg.merge_from_dict(dict(work_dir='work', experiment_name=f'contracts-{next(NUMBERS)}'))
        return cfg

    yield make
    DefaultScope._instance_dict.clear()


@pytest.fixture
def warnings(monkeypatch):
    lines = []
    monkeypatch.setattr(contracts, 'print_log', lambda text, logger, level: lines.append((level, text)))
    return lines


def check(cfg):
    check_contracts(Runner.from_cfg(cfg))


# --- classes ---------------------------------------------------------------------------------
DIFFERENT = {
    'the first class is missing': (['a', 'b', 'c'], ['b', 'c'], 'a lacking'),
    'one in the middle is missing': (['a', 'b', 'c'], ['a', 'c'], 'b lacking'),
    'one more': (['a', 'b'], ['a', 'b', 'c'], 'c more'),
    'one more at the beginning': (['b', 'c'], ['a', 'b', 'c'], 'a more'),
    'other names': (['a', 'b'], ['A', 'B'], 'a, b lacking, A, B more'),
}


@pytest.mark.parametrize('name', DIFFERENT)
def test_other_classes_in_validation(config, name):
    train, val, message = DIFFERENT[name]
    folders('train', *train)
    folders('val', *val)
    with pytest.raises(ValueError, match=rf'val_dataloader\.dataset has other classes than .* \({message}\)'):
        check(config())


@pytest.mark.parametrize(
    ('train', 'val'), [(['.git', 'a', 'b'], ['a', 'b']), (['a', 'b'], ['.ipynb_checkpoints', 'a', 'b'])]
)
def test_hidden_folders(config, train, val):
    folders('train', *train)
    folders('val', *val)
    with pytest.raises(ValueError, match='has the hidden folder'):
        check(config())
    kind = {f'{part}_dataloader.dataset.type': 'ImageFolder' for part in ('train', 'val')}
    check(config(**kind))


def test_what_the_message_advises_helps(config, warnings):
    folders('train', 'a', 'b', 'c')
    folders('val', 'b', 'c')
    options = {'val_dataloader.dataset.type': 'ImageFolder', 'val_dataloader.dataset.class_root': 'train'}
    check(config(**options))
    options = {'val_dataloader.dataset.type': 'ImageFolder', 'val_dataloader.dataset.classes': ['a', 'b', 'c']}
    check(config(**options))
    assert not warnings


def test_only_the_last_classes_missing_is_a_warning(config, warnings):
    folders('train', 'a', 'b', 'c')
    folders('val', 'a')
    check(config())
    assert warnings == [(logging.WARNING, 'Not all classes of training are validated: b, c lacking')]


def test_more_classes_than_the_head_has(config):
    folders('train', *'abcd')
    folders('val', *'abcd')
    with pytest.raises(ValueError, match=r'model\.head\.num_classes=3 are fewer than the 4 classes'):
        check(config())


@pytest.mark.parametrize(
    'name', ['head', 'decode_head', 'auxiliary_head', 'auxiliary_head.1', 'bbox_head', 'roi_head.bbox_head.0']
)
def test_heads_of_every_library(name):
    model, part = nn.Module(), nn.Module()
    part.num_classes = 2
    *outer, last = name.split('.')
    if last.isdecimal():
        wide = nn.Module()
        wide.num_classes = 5
        part = nn.ModuleList([part, wide] if last == '0' else [wide, part])
        last = outer.pop()
    inner = model
    for step in outer:
        setattr(inner, step, nn.Module())
        inner = getattr(inner, step)
    setattr(inner, last, part)
    with pytest.raises(ValueError, match=rf'model\.{name}\.num_classes=2 are fewer than the 3 classes'):
        contracts._check_number(model, ['a', 'b', 'c'])
    contracts._check_number(model, ['a', 'b'])
    contracts._check_number(model, None)


def recorded(*classes):
    return dict(dataset_meta=dict(classes=list(classes)))


def test_classes_that_a_checkpoint_records():
    data = SimpleNamespace(metainfo=dict(classes=('a', 'c')))
    check_recorded_classes(recorded('a', 'c', 'd'), data, 'x.pth', 'test_dataloader.dataset')
    check_recorded_classes({}, data, 'x.pth', 'test_dataloader.dataset')
    check_recorded_classes(recorded('a'), SimpleNamespace(metainfo={}), 'x.pth', 'test_dataloader.dataset')
    for classes in (['a', 'b', 'c'], ['c', 'a'], ['a']):
        with pytest.raises(ValueError, match=r'test_dataloader\.dataset has other classes than x\.pth'):
            check_recorded_classes(recorded(*classes), data, 'x.pth', 'test_dataloader.dataset')


@pytest.mark.slow
def test_tools_compare_with_the_checkpoint(config, monkeypatch, capfd):
    """A test folder, or the training's after a resume, that lacks a class that was trained."""
    folders('train', *'abc')
    folders('val', *'abc')
    config()

    def run(tool, *arguments):
        monkeypatch.setattr(sys, 'argv', [tool, 'c.py', *arguments])
        try:
            runpy.run_path(str(TOOLS / f'{tool}.py'), run_name='__main__')
        except SystemExit as stop:
            return stop.code, capfd.readouterr().err.splitlines()[-1]
        return 0, ''

    assert run('train', '--work-dir', 'work')[0] == 0
    assert run('test', 'work/iter_1.pth', '--work-dir', 'work')[0] == 0
    folders('less', *'bc')
    options = ['--cfg-options', 'test_dataloader.dataset.data_prefix=less']
    code, line = run('test', 'work/iter_1.pth', '--work-dir', 'work', *options)
    assert code == 2 and line.startswith('test: error: test_dataloader.dataset has other classes than work/iter_1.pth')
    options = ['train_cfg.max_iters=2', *(f'{part}_dataloader.dataset.data_prefix=less' for part in ('train', 'val'))]
    code, line = run('train', '--work-dir', 'work', '--resume', '--cfg-options', *options)
    assert code == 2 and 'train_dataloader.dataset has other classes than' in line and 'a lacking' in line


# --- what validation reads -------------------------------------------------------------------
def test_a_pipeline_of_validation_that_cannot_work(config):
    folders('train', 'a', 'b')
    folders('val', 'a', 'b')
    pipeline = [dict(type='LoadImageFromFile'), dict(type='CenterCrop', crop_size=(4, 4)), dict(type='PackInputs')]
    check(config(**{'val_dataloader.dataset.pipeline': pipeline}))
    for wrong in (pipeline[1:], [pipeline[0], dict(type='RandomResizedCrop', scale='x'), pipeline[2]]):
        with pytest.raises((ValueError, TypeError, AssertionError), match=''):
            check(config(**{'val_dataloader.dataset.pipeline': wrong}))
    Path('val/a/0.png').write_bytes(b'no image')
    with pytest.raises(ValueError, match=r'first image of val_dataloader\.dataset cannot be read: '):
        check(config())


def test_random_numbers_are_left_as_they_were():
    class Data:
        def __getitem__(self, index):
            return torch.rand(1), np.random.rand(), random.random()

    def draw():
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
        if checked:
            contracts._check_first(Data(), 'val')
        return Data()[0]

    checked = False
    plain = draw()
    checked = True
    assert draw() == plain


@pytest.mark.parametrize(
    ('transform', 'message'),
    [
        (dict(type='CenterCrop', crop_size='x'), 'AssertionError|TypeError|ValueError'),
        (dict(type='CentreCrop', crop_size=4), 'CentreCrop'),
        (dict(type='CenterCrop', size=4), 'TypeError'),
    ],
)
def test_a_pipeline_of_the_evaluation_after_the_run(config, transform, message):
    folders('train', 'a', 'b')
    folders('val', 'a', 'b')
    pipeline = [dict(type='LoadImageFromFile'), transform, dict(type='PackInputs')]
    knn = dict(bank=dict(dataset=dict(type='ImageFolder', data_prefix='train', pipeline=pipeline)))
    with pytest.raises(ValueError, match=rf'knn\.bank\.dataset\.pipeline\.1 cannot be built.*({message})'):
        check(config(knn=knn))


def test_data_that_the_evaluation_after_the_run_lacks(config, warnings):
    folders('train', 'a', 'b')
    folders('val', 'a', 'b')
    loaders = {
        name: dict(dataset=dict(type='ImageFolder', data_prefix=folder, pipeline=[]))
        for name, folder in (('bank', 'train'), ('query', 'gone'))
    }
    check(config(knn=loaders))
    text = 'tools/eval_knn.py will lack data after this run: knn.query.dataset.data_prefix = gone'
    assert warnings == [(logging.WARNING, text)]


# --- room ------------------------------------------------------------------------------------
def test_size_of_a_checkpoint(config, tmp_path):
    folders('train', 'a', 'b')
    folders('val', 'a', 'b')
    for optimizer, states in (('SGD', 1), ('AdamW', 2), ('Adafactor', 0)):
        model = nn.Sequential(nn.Linear(100, 50), nn.BatchNorm1d(50))
        model[0].bias.requires_grad = False
        number = checkpoint_size(model, dict(optim_wrapper=dict(optimizer=dict(type=optimizer))))
        trained = 4 * (100 * 50 + 2 * 50)
        assert number == trained + 4 * (50 + 2 * 50) + 8 + states * trained


@pytest.mark.parametrize(('checkpoints', 'outcome'), [(0.5, 'refused'), (2.5, 'warned'), (3.5, 'fine')])
def test_room_for_checkpoints(config, monkeypatch, warnings, checkpoints, outcome):
    folders('train', 'a', 'b')
    folders('val', 'a', 'b')
    runner = Runner.from_cfg(config(**{'default_hooks.checkpoint.max_keep_ckpts': 2}))
    size = checkpoint_size(runner.model, runner.cfg)
    monkeypatch.setattr(contracts.shutil, 'disk_usage', lambda path: SimpleNamespace(free=int(checkpoints * size)))
    if outcome == 'refused':
        with pytest.raises(OSError, match=r'free, and a checkpoint of this run takes about'):
            check_contracts(runner)
    else:
        check_contracts(runner)
        assert len(warnings) == (outcome == 'warned')
        assert all('The 3 checkpoints' in text for _, text in warnings)
