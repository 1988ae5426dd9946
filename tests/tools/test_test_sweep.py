"""tools/test.py on a sweep of learning rates: which one it scores."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope, init_default_scope

TOOL = Path(__file__).parents[2] / 'tools' / 'test.py'
CONFIG = """
default_scope = 'mmpretrain'
custom_imports = dict(imports=['poa_mm'])
model = dict(
    type='ImageClassifier', data_preprocessor=dict(mean=[78.0] * 3, std=[95.0] * 3),
    backbone=dict(type='VisionTransformer', arch=dict(embed_dims=16, num_layers=1, num_heads=2,
        feedforward_channels=32), img_size=8, patch_size=4, frozen_stages=1, out_type='cls_token'),
    head=dict(type='LinearSweepHead', num_classes=10, in_channels=16, lrs=[0.1, 0.2, 0.4]))
def loader(split):
    return dict(batch_size=64, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(type='Digits', split=split, pipeline=[dict(type='PackInputs')]))
val_dataloader, test_dataloader = loader(VAL), loader('test')
val_evaluator = test_evaluator = dict(type='SweepAccuracy')
val_cfg = test_cfg = dict()
"""


@pytest.mark.parametrize('val', ['val', 'test'])
def test_the_rate_is_chosen_by_validation_where_there_is_one(tmp_path, monkeypatch, capfd, val):
    monkeypatch.chdir(tmp_path)
    Path('c.py').write_text(CONFIG.replace('VAL', repr(val)))
    init_default_scope('mmpretrain')
    from mmengine.config import Config

    torch.manual_seed(3)
    model = MODELS.build(Config.fromfile('c.py').model)
    for param in model.parameters():
        torch.nn.init.normal_(param, std=0.3)
    torch.save(dict(state_dict=model.state_dict()), 'w.pth')
    monkeypatch.setattr(sys, 'argv', ['test.py', 'c.py', 'w.pth', '--work-dir', 'work'])
    runpy.run_path(str(TOOL), run_name='__main__')
    DefaultScope._instance_dict.clear()
    (scalars,) = Path('work').glob('*/*.json')
    found = json.loads(scalars.read_text().splitlines()[-1])
    text = ''.join(capfd.readouterr())
    by_rate = {lr: found[f'accuracy/top1_lr_{lr}'] for lr in ('0.1', '0.2', '0.4')}
    assert found['accuracy/top1'] == by_rate[f'{found["accuracy/best_lr"]:g}']
    if val == 'test':
        assert 'chosen on these very images' in text and 'by validation' not in text
        assert found['accuracy/top1'] == max(by_rate.values())
    else:
        chosen = float(text.split('Of the learning rates, ')[1].split()[0])
        assert found['accuracy/best_lr'] == chosen
