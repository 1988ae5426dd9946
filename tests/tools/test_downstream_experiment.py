import argparse
import json
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config, DictAction
from mmengine.registry import MODELS

from poa_mm.mistakes import UserError

sys.path.insert(0, str(Path(__file__).parents[2] / 'tools'))
import downstream_experiment as experiment

SEGMENTATION = experiment.TASKS['segmentation']
SUBNETS = SEGMENTATION.subnets


@pytest.fixture
def args(tmp_path):
    return argparse.Namespace(task='segmentation', seeds=[3, 4], jobs=1, work_dir=tmp_path / 'work')


@pytest.fixture
def calls(monkeypatch):
    """What would be run. Trainings leave a log as mmengine does, in which subnets of POA score twice as high."""
    done = []

    def call(args, name, tool, *options):
        done.append((tool, *map(str, options)))
        if name.startswith('segmentation/'):
            log = args.work_dir / name / '20260101_000000' / 'vis_data' / 'scalars.json'
            log.parent.mkdir(parents=True)
            scores = [8.0, 16.0] if 'poa' in name else [4.0, 8.0]
            lines = [{'loss': 1.0, 'step': 5}, *({'mIoU': score, 'step': 10 * i} for i, score in enumerate(scores, 1))]
            log.write_text('\n'.join(map(json.dumps, lines)))

    monkeypatch.setattr(experiment, 'call', call)
    return done


def test_makes_what_is_missing_and_compares_both_starts(args, calls, monkeypatch, tmp_path):
    monkeypatch.setenv('POA_SCENES', str(tmp_path / 'scenes'))
    experiment.experiment(args)
    assert [tool for tool, *_ in calls[:3]] == [
        'dataset_converters/fashion_scenes.py',
        'train.py',
        'extract_subnet.py',
    ]
    trainings = calls[3:]
    assert len(trainings) == len(SUBNETS) * len(experiment.STARTS) * len(args.seeds)
    for subnet in SUBNETS:
        config = str(experiment.ROOT / SEGMENTATION.config.format(subnet=subnet))
        options = [' '.join(training[4:]) for training in trainings if training[1] == config]
        weights = args.work_dir / 'vitt_fmnist_rgb' / 'subnets' / f'poa_{subnet}.safetensors'
        assert options == [
            f'--cfg-options model.backbone.{start} randomness.seed={seed}'
            for seed in args.seeds
            for start in (f'init_cfg.checkpoint={weights}', 'init_cfg=None')
        ]
    report = json.loads((args.work_dir / 'segmentation.json').read_text())
    assert report['iterations'] == 20
    assert report['rows'] == [
        {'subnet': subnet, 'start': start, 'mIoU': [score, score]}
        for subnet in SUBNETS
        for start, score in (('poa', 16.0), ('scratch', 8.0))
    ]
    assert (args.work_dir / 'segmentation.png').read_bytes().startswith(b'\x89PNG')

    del calls[3:]
    (args.work_dir / 'vitt_fmnist_rgb' / 'subnets').mkdir(parents=True)
    (args.work_dir / 'vitt_fmnist_rgb' / 'subnets' / 'manifest.json').touch()
    (tmp_path / 'scenes').mkdir()
    experiment.experiment(args)
    assert len(calls) == 3, 'nothing is done twice'


@pytest.mark.parametrize('task', experiment.TASKS.values(), ids=experiment.TASKS)
def test_scratch_is_how_the_stock_backbone_starts(task):
    cfg = Config.fromfile(experiment.ROOT / task.config.format(subnet=task.subnets[0]))
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    options = ['--cfg-options', *(f'model.backbone.{option}' for option in task.scratch)]
    cfg.merge_from_dict(parser.parse_args(options).cfg_options)
    backbones = []
    for config in (cfg.model.backbone, {k: v for k, v in cfg.model.backbone.items() if k != 'init_cfg'}):
        torch.manual_seed(0)
        backbones.append(MODELS.build(config))
        backbones[-1].init_weights()
    scratch, stock = (backbone.state_dict() for backbone in backbones)
    assert scratch.keys() == stock.keys()
    assert all(torch.equal(scratch[name], stock[name]) for name in stock)


def test_a_failure_shows_the_end_of_the_log(args):
    with pytest.raises(UserError, match=r'train\.py failed; .*nowhere\.py'):
        experiment.call(args, 'broken', 'train.py', 'nowhere.py')
    assert (args.work_dir / 'broken.log').exists()
