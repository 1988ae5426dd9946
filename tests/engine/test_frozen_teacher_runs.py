"""Runs whose teacher is frozen."""

import copy
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmpretrain.models import VisionTransformer
from torch.testing import assert_close

from poa_mm.checkpoint import CheckpointError, load_teacher, read_checkpoint
from poa_mm.deploy.extract import extract_subnets
from poa_mm.elastic import Subnet
from poa_mm.engine.resume import set_start
from poa_mm.engine.start import build_runner as start_runner

ARCH = dict(embed_dims=48, num_layers=2, num_heads=4, feedforward_channels=64)


@pytest.fixture(autouse=True)
def resumable(run_config):
    run_config.train_cfg.update(type='ResumableTrainLoop')
    run_config.train_dataloader.sampler.type = 'ResumableSampler'
    run_config.custom_hooks[0].momentum = (0.9, 0.9)  # the same for a run of any length


@pytest.fixture
def start(run_config, build_runner):
    """Checkpoint of an ordinary run, whose student and teacher differ."""
    cfg = copy.deepcopy(run_config)
    cfg.work_dir, cfg.train_cfg.max_iters = f'{cfg.work_dir}_start', 2
    build_runner(cfg).train()
    return Path(cfg.work_dir, 'iter_2.pth')


def write_network(path, seed=0, **options):
    """A network of another architecture; the config that loads it."""
    torch.manual_seed(seed)
    options = dict(arch=ARCH, img_size=8, patch_size=4) | options
    network = VisionTransformer(**options)
    network.init_weights()
    torch.save({'state_dict': network.state_dict()}, path)
    return dict(type='VisionTransformer', **options, init_cfg=dict(type='Pretrained', checkpoint=str(path)))


@pytest.fixture(params=['source', 'another'])
def frozen(request, run_config, start, tmp_path):
    """The config of a run with either kind of frozen teacher."""
    run_config.load_from = str(start)
    run_config.model.frozen_teacher = (
        'source' if request.param == 'source' else dict(backbone=write_network(tmp_path / 'wide.pth'))
    )
    return run_config


class FrozenWeights(Hook):
    """The frozen teacher before each iteration."""

    def __init__(self):
        self.seen = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.seen.append({name: value.clone() for name, value in runner.model.frozen_teacher.state_dict().items()})


def test_a_run_does_not_change_it(frozen, build_runner, start):
    before = FrozenWeights()
    runner = build_runner(frozen, [before])
    runner.train()
    model = runner.model
    for seen in before.seen[1:]:
        assert_close(seen, before.seen[0], rtol=0, atol=0)
    assert_close(model.frozen_teacher.state_dict(), before.seen[0], rtol=0, atol=0)
    if model.frozen_teacher.is_source:
        expected = load_teacher(start)[0].state_dict()
        assert_close(model.frozen_teacher.backbone.state_dict(), expected, rtol=0, atol=0)
    else:
        expected = read_checkpoint(frozen.model.frozen_teacher.backbone.init_cfg.checkpoint)['state_dict']
        assert_close(model.frozen_teacher.backbone.state_dict(), expected, rtol=0, atol=0)

    in_optimizer = {id(param) for group in runner.optim_wrapper.param_groups for param in group['params']}
    for name, param in model.named_parameters():
        trained = not name.startswith(('teacher.', 'frozen_teacher.'))
        assert (id(param) in in_optimizer) == param.requires_grad == trained, name
        if not trained:
            assert param.grad is None


def test_subnets_are_cut_from_the_average_of_the_student(frozen, build_runner, start, tmp_path):
    """And not from what teaches: that would hand out the network that the run began with."""
    runner = build_runner(frozen)
    runner.train()
    checkpoint = Path(frozen.work_dir, 'iter_4.pth')
    backbone, description = load_teacher(checkpoint)
    assert_close(backbone.state_dict(), runner.model.teacher['backbone'].state_dict(), rtol=0, atol=0)
    source = load_teacher(start)[0]
    assert (backbone.layers[0].attn.qkv.weight != source.layers[0].attn.qkv.weight).any()
    assert 'frozen_teacher' not in description
    images = torch.randn(2, 3, 8, 8)
    (entry,) = extract_subnets(checkpoint, ['16x2'], tmp_path / 'out')
    assert entry['max_abs_diff'] < 1e-4
    subnet = Subnet(16, 2)
    assert_close(backbone(images, subnet), runner.model.extract_feat(images, subnet), rtol=0, atol=0)


def test_with_momentum_0_subnets_are_those_of_the_student(frozen, build_runner):
    frozen.custom_hooks[0].momentum = (0, 0)
    runner = build_runner(frozen)
    runner.train()
    found = load_teacher(Path(frozen.work_dir, 'iter_4.pth'))[0].state_dict()
    assert_close(found, runner.model.backbone.state_dict(), rtol=0, atol=0)


def test_resume_is_exact(frozen, build_runner):
    whole = copy.deepcopy(frozen)
    whole.work_dir += '_whole'
    expected = build_runner(whole)
    expected.train()

    frozen.train_cfg.max_iters = 2
    build_runner(frozen).train()
    stored = read_checkpoint(Path(frozen.work_dir, 'iter_2.pth'))['state_dict']
    assert sum('frozen_teacher.loaded' in name for name in stored) == 1
    frozen.train_cfg.max_iters, frozen.resume, frozen.load_from = 4, True, None
    resumed = build_runner(frozen)
    resumed.train()
    assert_close(resumed.model.state_dict(), expected.model.state_dict(), rtol=0, atol=0)


def test_resume_with_another_file(run_config, start, build_runner, tmp_path):
    run_config.load_from = str(start)
    run_config.model.frozen_teacher = dict(backbone=write_network(tmp_path / 'wide.pth'))
    run_config.train_cfg.max_iters = 1
    build_runner(run_config).train()
    write_network(tmp_path / 'wide.pth', seed=1)
    run_config.train_cfg.max_iters, run_config.resume, run_config.load_from = 2, True, None
    with pytest.raises(CheckpointError, match='is not the one that the run began with: backbone'):
        build_runner(run_config).train()


def test_a_new_run_from_a_run_with_a_frozen_teacher(run_config, start, build_runner):
    """It is frozen at what that run has learnt; an ordinary run starts from it, too."""
    run_config.load_from, run_config.model.frozen_teacher = str(start), 'source'
    build_runner(run_config).train()
    learnt = Path(run_config.work_dir, 'iter_4.pth')
    for number, frozen_teacher in enumerate(('source', None)):
        second = copy.deepcopy(run_config)
        second.load_from, second.work_dir, second.train_cfg.max_iters = str(learnt), f'{learnt.parent}_{number}', 1
        second.model.frozen_teacher = frozen_teacher
        runner = build_runner(second)
        runner.train()
        if frozen_teacher:
            expected = load_teacher(learnt)[0].state_dict()
            assert_close(runner.model.frozen_teacher.backbone.state_dict(), expected, rtol=0, atol=0)


# --- what does not fit, before the first step -------------------------------------------------


def started(cfg):
    set_start(cfg)
    return start_runner(cfg)


def test_a_source_needs_a_file(run_config):
    run_config.model.frozen_teacher = 'source'
    with pytest.raises(ValueError, match="'source' is the network that the run starts from, and load_from names no"):
        started(run_config)


def test_a_file_without_a_teacher(run_config, tmp_path):
    torch.save({'state_dict': {'weight': torch.zeros(1)}}, tmp_path / 'x.pth')
    run_config.load_from, run_config.model.frozen_teacher = str(tmp_path / 'x.pth'), 'source'
    runner = started(run_config)
    with pytest.raises(CheckpointError, match=r'hold no teacher\.backbone'):
        runner.train()
    assert runner.iter == 0


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(arch={**ARCH, 'num_layers': 3}), r'does not fit frozen_teacher\.backbone .*missing layers\.2'),
        (dict(arch={**ARCH, 'feedforward_channels': 32}), r'does not fit frozen_teacher\.backbone .*size mismatch'),
        (dict(init_cfg=dict(type='Pretrained', checkpoint='nowhere.pth')), r'there is no file nowhere\.pth'),
    ],
)
def test_weights_of_another_network(run_config, tmp_path, change, message):
    backbone = write_network(tmp_path / 'wide.pth') | change
    run_config.model.frozen_teacher = dict(backbone=backbone)
    with pytest.raises(CheckpointError, match=message):
        started(run_config)


def test_weights_that_are_no_numbers(run_config, tmp_path):
    backbone = write_network(tmp_path / 'wide.pth')
    weights = read_checkpoint(tmp_path / 'wide.pth')
    weights['state_dict']['cls_token'][:] = float('nan')
    torch.save(weights, tmp_path / 'wide.pth')
    run_config.model.frozen_teacher = dict(backbone=backbone)
    with pytest.raises(CheckpointError, match='NaN or infinity in cls_token'):
        started(run_config)


def test_the_file_of_the_frozen_teacher_may_be_that_of_the_start(run_config, start):
    """Which must not keep the run from loading it."""
    backbone = dict(run_config.model.backbone, init_cfg=dict(checkpoint=str(start), prefix='teacher.backbone.'))
    backbone['init_cfg']['type'] = 'Pretrained'
    run_config.model.frozen_teacher, run_config.load_from = dict(backbone=backbone), str(start)
    set_start(run_config)
    assert run_config.load_from == f'poa://{start}'


def test_an_average_that_nothing_moves(run_config):
    """What is cut from the checkpoints of such a run would be what it began with."""
    del run_config.custom_hooks[0]
    with pytest.raises(ValueError, match='lacks TeacherEMAHook: subnets are cut from the teacher'):
        started(run_config)
