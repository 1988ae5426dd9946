import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import MODELS
from torch.testing import assert_close

from poa_mm.checkpoint import CheckpointError


@pytest.fixture
def config(tmp_path):
    """A classifier on digits, the weights of whose backbone are in a file."""
    loader = dict(
        batch_size=8,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(type='Digits', split='test', indices=16, pipeline=[dict(type='PackInputs')]),
    )
    arch = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
    cfg = dict(
        default_scope='mmpretrain',
        custom_hooks=[dict(type='StrictPretrainedHook')],
        model=dict(
            type='ImageClassifier',
            data_preprocessor=dict(mean=[0.0] * 3, std=[255.0] * 3),
            backbone=dict(type='VisionTransformer', arch=arch, img_size=8, patch_size=4),
            head=dict(type='LinearClsHead', num_classes=10, in_channels=16),
        ),
        train_dataloader=loader,
        test_dataloader=loader,
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=1),
        test_cfg=dict(),
        test_evaluator=dict(type='Accuracy'),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        default_hooks=dict(checkpoint=None),
        log_level='ERROR',
        work_dir=str(tmp_path / 'work'),
    )
    torch.save(
        MODELS.build(dict(cfg['model']['backbone'], type='mmpretrain.VisionTransformer')).state_dict(),
        tmp_path / 'vit.pth',
    )
    cfg['model']['backbone']['init_cfg'] = dict(type='Pretrained', checkpoint=str(tmp_path / 'vit.pth'))
    return Config(cfg)


class FirstWeights(Hook):
    """Keeps the weights that training starts from."""

    def before_train(self, runner):
        self.weights = {key: value.clone() for key, value in runner.model.state_dict().items()}


def start_of(cfg, build_runner):
    hook = FirstWeights()
    build_runner(cfg, [hook]).train()
    return hook.weights


def test_fitting_weights_are_trained(config, build_runner, tmp_path):
    start = start_of(config, build_runner)
    expected = torch.load(tmp_path / 'vit.pth')
    assert_close({key: start[f'backbone.{key}'] for key in expected}, dict(expected))


def test_a_key_that_does_not_fit_stops_the_run(config, build_runner, tmp_path):
    weights = torch.load(tmp_path / 'vit.pth')
    del weights['layers.1.ln2.bias']
    torch.save(weights, tmp_path / 'vit.pth')
    with pytest.raises(CheckpointError, match=r'missing layers.1.ln2.bias'):
        start_of(config, build_runner)


def test_what_the_task_adds_may_be_absent(config, build_runner, tmp_path):
    weights = {key: value for key, value in torch.load(tmp_path / 'vit.pth').items() if not key.startswith('ln1.')}
    torch.save(weights, tmp_path / 'vit.pth')
    with pytest.raises(CheckpointError, match=r'missing ln1\.bias, ln1\.weight'):
        start_of(config, build_runner)
    config.custom_hooks[0].new = ['ln1']
    start = start_of(config, build_runner)
    assert_close({key: start[f'backbone.{key}'] for key in weights}, weights)


def test_new_is_a_sequence_of_names(config, build_runner):
    config.custom_hooks[0].new = 'ln1'
    with pytest.raises(TypeError, match=r"such as \('ln1',\)"):
        build_runner(config)


def test_weights_to_start_from_win(config, build_runner, randomise, tmp_path):
    config.load_from = str(tmp_path / 'start.pth')
    weights = randomise(MODELS.build(dict(config.model, type='mmpretrain.ImageClassifier'))).state_dict()
    torch.save(dict(state_dict=weights), config.load_from)
    assert_close(dict(start_of(config, build_runner)), dict(weights))


def test_scoring_needs_no_file(config, build_runner):
    config.model.backbone.init_cfg.checkpoint = 'gone.pth'
    assert 'accuracy/top1' in build_runner(config).test()
