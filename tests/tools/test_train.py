import os
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS

from poa_mm.checkpoint import check_integrity
from poa_mm.engine import resume
from poa_mm.engine.launch import prepare, read_config

sys.path.insert(0, str(Path(__file__).parents[2] / 'tools'))
import train

BASE = Path(__file__).parents[2] / 'configs' / 'poa' / 'vitt_digits.py'
SHORT = ['train_cfg.max_iters=2', 'train_dataloader.batch_size=8', 'log_level=ERROR', 'default_hooks.logger.interval=1']


def run(monkeypatch, *argv):
    monkeypatch.setattr(sys, 'argv', ['train.py', *map(str, argv)])
    train.main()


def test_trains_and_resumes(tmp_path, monkeypatch):
    run(monkeypatch, BASE, '--work-dir', tmp_path, '--cfg-options', *SHORT)
    assert (tmp_path / 'iter_2.pth').is_file()
    assert list(tmp_path.glob('*/vis_data/scalars.json')), 'loss curves'
    longer = ['train_cfg.max_iters=3', *SHORT[1:]]
    run(monkeypatch, BASE, '--work-dir', tmp_path, '--resume', '--cfg-options', *longer)
    assert (tmp_path / 'iter_3.pth').is_file()


def arguments(monkeypatch, *argv):
    monkeypatch.setattr(sys, 'argv', ['train.py', str(BASE), *argv])
    args = train.parse_args()
    cfg = read_config(args.config, args.cfg_options, args.work_dir)
    train.merge_args(cfg, args)
    return cfg


def test_work_dir_is_named_after_the_config(monkeypatch):
    assert arguments(monkeypatch).work_dir == 'work_dirs/vitt_digits'


def test_amp_chooses_the_counterpart(monkeypatch):
    assert arguments(monkeypatch, '--amp').optim_wrapper.type == 'POAAmpOptimWrapper'
    cfg = arguments(monkeypatch, '--amp', '--cfg-options', 'optim_wrapper.type=OptimWrapper')
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    with pytest.raises(ValueError, match="'ApexOptimWrapper'; valid: OptimWrapper, POAOptimWrapper"):
        arguments(monkeypatch, '--amp', '--cfg-options', 'optim_wrapper.type=ApexOptimWrapper')


def test_amp_knows_the_class_of_a_config_in_pure_python(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['train.py', str(BASE), '--amp'])
    args = train.parse_args()
    cfg = Config.fromfile(args.config)
    cfg.optim_wrapper.type = OptimWrapper
    train.merge_args(cfg, args)
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'


def test_learning_rate_follows_the_batch_size(monkeypatch):
    option = ['--cfg-options', 'auto_scale_lr.base_batch_size=16']
    assert not arguments(monkeypatch, *option).auto_scale_lr.get('enable')
    assert arguments(monkeypatch, '--auto-scale-lr', *option).auto_scale_lr.enable
    with pytest.raises(ValueError, match='--auto-scale-lr needs'):
        arguments(monkeypatch, '--auto-scale-lr')


@pytest.fixture
def classifier(tmp_path):
    """A downstream config with nothing of POA in it: mmpretrain's own classes only."""
    config = tmp_path / 'classifier.py'
    config.write_text("""
default_scope = 'mmpretrain'
custom_imports = dict(imports=['poa_mm'])
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(mean=[0.0] * 3, std=[255.0] * 3),
    backbone=dict(type='VisionTransformer', arch=dict(
        embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32), img_size=8, patch_size=4),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=16, loss=dict(type='CrossEntropyLoss')))
train_dataloader = dict(
    batch_size=8, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='Digits', pipeline=[dict(type='PackInputs')]))
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=2)
default_hooks = dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2))
log_level = 'ERROR'
""")
    return config


def stop(monkeypatch, capfd, *argv):
    """The last line of a run that does not start."""
    with pytest.raises(SystemExit) as error:
        run(monkeypatch, *argv)
    assert error.value.code == 2
    return capfd.readouterr().err.splitlines()[-1]


class Command:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f'touch {self.marker}',)


def test_no_reading_path_runs_a_command(classifier, tmp_path, monkeypatch, capfd):
    work_dir = tmp_path / 'work'
    work_dir.mkdir()
    evil = work_dir / 'iter_1.pth'
    torch.save({'state_dict': {'x': Command(tmp_path / 'marker')}}, evil)
    for argv in (
        ['--resume', evil],
        ['--resume'],
        ['--cfg-options', 'resume=True'],
        ['--cfg-options', f'load_from={evil}'],
        ['--cfg-options', 'model.backbone.init_cfg.type=Pretrained', f'model.backbone.init_cfg.checkpoint={evil}'],
    ):
        line = stop(monkeypatch, capfd, classifier, '--work-dir', work_dir, *argv)
        assert line.startswith('train: ') and 'iter_1.pth' in line
        assert not (tmp_path / 'marker').exists()


def test_resume_of_a_damaged_or_wrong_checkpoint(classifier, tmp_path, monkeypatch, capfd):
    work_dir = tmp_path / 'work'
    each = ['--cfg-options', 'default_hooks.checkpoint.type=POACheckpointHook', 'default_hooks.checkpoint.interval=1']
    run(monkeypatch, classifier, '--work-dir', work_dir, *each)
    newest = work_dir / 'iter_2.pth'

    line = stop(monkeypatch, capfd, classifier, '--resume', newest, '--cfg-options', 'model.head.num_classes=11')
    assert 'iter_2.pth: state_dict does not fit the network: head.fc.bias is (10,), expected (11,)' in line
    newest.write_bytes(newest.read_bytes()[:2000])
    line = stop(monkeypatch, capfd, classifier, '--resume', newest, *each)
    assert 'iter_2.pth: expected a checkpoint' in line

    (work_dir / 'last_checkpoint').write_text('')
    warnings = []
    monkeypatch.setattr(resume, '_warn', warnings.append)
    run(monkeypatch, classifier, '--work-dir', work_dir, '--resume', *each)
    check_integrity(newest)  # iteration 2 was run again
    assert [warning.split(':')[0] for warning in warnings] == [
        f'{work_dir}/last_checkpoint is blank',
        f'Not resumed from {newest}',
    ]


def test_trains_a_downstream_config(classifier, tmp_path, monkeypatch):
    run(monkeypatch, classifier, '--work-dir', tmp_path / 'work')
    assert 'backbone.cls_token' in torch.load(tmp_path / 'work' / 'iter_2.pth', weights_only=False)['state_dict']


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--auto-scale-lr'], '--auto-scale-lr needs'),
        (['--cfg-options', 'train_dataloader.dataset.data_root=gone'], 'train_dataloader.dataset.data_root = gone'),
        (
            ['--cfg-options', 'model.backbone.init_cfg.type=Pretrained', 'model.backbone.init_cfg.checkpoint=gone.pth'],
            'init_cfg of backbone: there is no file gone.pth',
        ),
    ],
)
def test_what_users_get_wrong_is_one_line(classifier, tmp_path, monkeypatch, capfd, arguments, message):
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, classifier, '--work-dir', tmp_path / 'work', *arguments)
    assert stop.value.code == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith('train: ') and message in last
    assert not list(tmp_path.glob('work/*.pth'))


def test_what_the_task_adds_may_be_absent(classifier, tmp_path, monkeypatch, capfd):
    model = MODELS.build(dict(Config.fromfile(classifier).model.backbone, type='mmpretrain.VisionTransformer'))
    weights = {key: value for key, value in model.state_dict().items() if not key.startswith('ln1.')}
    torch.save(weights, tmp_path / 'vit.pth')
    init_cfg = f'dict(type="Pretrained", checkpoint={str(tmp_path / "vit.pth")!r})'
    with classifier.open('a') as file:
        file.write(f"model['backbone']['init_cfg'] = {init_cfg}\n")
        file.write("custom_hooks = [dict(type='StrictPretrainedHook', new=['ln1'])]\n")
    run(monkeypatch, classifier, '--work-dir', tmp_path / 'work')
    with pytest.raises(SystemExit):
        run(monkeypatch, classifier, '--cfg-options', 'custom_hooks.0.new=["ln2"]')
    assert 'missing ln1.bias, ln1.weight' in capfd.readouterr().err.splitlines()[-1]


def test_errors_of_the_training_keep_their_traceback(classifier, tmp_path, monkeypatch):
    options = ['--cfg-options', 'model.head.in_channels=17']
    with pytest.raises(RuntimeError, match='17'):
        run(monkeypatch, classifier, '--work-dir', tmp_path / 'work', *options)


def test_no_such_config(tmp_path, monkeypatch, capfd):
    with pytest.raises(SystemExit, match='2'):
        run(monkeypatch, tmp_path / 'none.py')
    assert 'none.py' in capfd.readouterr().err


# --- one's own images ------------------------------------------------------------------------
@pytest.fixture
def own(tmp_path, monkeypatch):
    """The config that the whole command makes of a folder of 50 images, as far as the data is counted."""
    (tmp_path / 'images').mkdir()
    for index in range(50):
        (tmp_path / 'images' / f'{index}.jpg').touch()

    def configured(*argv, base='vits_folder.py'):
        work_dir = ['--work-dir', str(tmp_path / 'work_dirs' / 'x')]
        monkeypatch.setattr(sys, 'argv', ['train.py', str(BASE.with_name(base)), *work_dir, *argv])
        args = train.parse_args()
        cfg = read_config(args.config, args.cfg_options, args.work_dir)
        train.merge_args(cfg, args)
        prepare(cfg, args.launcher)
        return cfg

    return configured


def test_the_whole_command_for_ones_own_images(own, tmp_path):
    cfg = own('--data', str(tmp_path / 'images'), '--epochs', '20', '--batch-size', '1')
    assert (cfg.recipe.images, cfg.recipe.epochs, cfg.train_dataloader.batch_size) == (50, 20, 1)
    assert cfg.train_cfg.max_iters == 20 * 3 * 16  # updates of 16 batches of 1 image
    assert cfg.param_scheduler[1].end == cfg.train_cfg.max_iters
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(0.004 * (16 / 1024) ** 0.5)
    assert cfg.train_dataloader.dataset.cache_dir == str(tmp_path / 'work_dirs' / 'image_index')
    assert own('--data', str(tmp_path / 'images'), '--allow-other-data').train_cfg.allow_other_data


def test_the_data_of_another_recipe(own, tmp_path):
    cfg = own('--data', str(tmp_path / 'images'), base='vits_in1k_1gpu.py')
    assert (cfg.recipe.images, cfg.train_cfg.max_iters) == (50, 100 * 16)


def test_one_line_for_data_that_is_not_there(own, tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere'):
        own('--data', str(tmp_path / 'nowhere'))
    with pytest.raises(ValueError, match='epochs'):
        own('--data', str(tmp_path / 'images'), '--epochs', '0')
