import os

import pytest
import torch
from mmengine.config import Config

from poa_mm import compat
from poa_mm.engine import launch


def test_unknown_launcher_is_refused():
    with pytest.raises(ValueError, match="'mpirun' is not one of none, pytorch, slurm, mpi"):
        launch.init_distributed('mpirun')


def test_none_joins_nothing():
    cfg = Config(dict())
    launch.prepare(cfg, 'none')
    assert cfg.launcher == 'none'
    assert 'model_wrapper_cfg' not in cfg
    assert not torch.distributed.is_initialized()


@pytest.mark.skipif(torch.cuda.is_available(), reason='about machines without a GPU')
def test_slurm_needs_gpus():
    with pytest.raises(ValueError, match='needs GPUs'):
        launch.init_distributed('slurm')


def test_missing_data_is_found_before_processes_meet(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, 'init_distributed', lambda *args: pytest.fail('joined the process group'))
    cfg = Config(dict(test_dataloader=dict(dataset=dict(data_root=str(tmp_path / 'gone')))))
    with pytest.raises(FileNotFoundError, match=r'test_dataloader\.dataset\.data_root'):
        launch.prepare(cfg, 'none', parts=['test'])
    monkeypatch.undo()
    launch.prepare(cfg, 'none')  # a training run does not use it


@pytest.mark.skipif(torch.cuda.is_available(), reason='about machines without a GPU')
@pytest.mark.parametrize(('launcher', 'expected'), [('pytorch', 'BN'), ('none', 'SyncBN')])
def test_sync_bn_of_a_distributed_cpu_run(monkeypatch, launcher, expected):
    monkeypatch.setattr(launch, 'init_distributed', lambda *args: None)
    norm = dict(type='SyncBN', requires_grad=True)
    model = dict(backbone=dict(norm_cfg=norm), heads=[dict(norm_cfg=norm), dict(stages=(dict(norm_cfg=norm),))])
    cfg = Config(dict(model=dict(model, type='EncoderDecoder', name='SyncBN'), sync_bn='torch'))
    launch.prepare(cfg, launcher)
    model = cfg.model
    found = [part['norm_cfg'] for part in (model.backbone, model.heads[0], model.heads[1]['stages'][0])]
    assert found == [dict(type=expected, requires_grad=True)] * 3
    assert (model.type, model.name) == ('EncoderDecoder', 'SyncBN')
    assert cfg.sync_bn == (None if launcher == 'pytorch' else 'torch')


def test_a_config_of_a_library_that_is_not_there(tmp_path, monkeypatch):
    (tmp_path / 'some.py').write_text("default_scope = 'mmdet'\n")
    monkeypatch.setattr(compat, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match=r'some\.py: mmdet is not installed'):
        launch.read_config(tmp_path / 'some.py')


def test_a_deterministic_run_is_prepared_for_gpus(monkeypatch):
    name = 'CUBLAS_WORKSPACE_CONFIG'
    monkeypatch.setenv(name, 'mine')
    launch.prepare(Config(dict(randomness=dict(deterministic=True))), 'none')
    assert os.environ[name] == 'mine'
    monkeypatch.delenv(name)
    launch.prepare(Config(dict(randomness=dict(seed=1))), 'none')
    assert name not in os.environ
    launch.prepare(Config(dict(randomness=dict(deterministic=True))), 'none')
    assert os.environ[name] == ':4096:8'


def test_config_with_options_and_work_dir(tmp_path):
    (tmp_path / 'some.py').write_text('a = dict(b=1, c=2)\n')
    assert launch.read_config(tmp_path / 'some.py').work_dir == 'work_dirs/some'
    cfg = launch.read_config(tmp_path / 'some.py', {'a.b': 3, 'work_dir': 'there'})
    assert (cfg.a, cfg.work_dir) == (dict(b=3, c=2), 'there')
    assert launch.read_config(tmp_path / 'some.py', {'work_dir': 'there'}, tmp_path).work_dir == str(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason='about machines without a GPU')
def test_wrapper_of_a_cpu_run_has_no_devices(monkeypatch):
    monkeypatch.setattr(launch, 'init_distributed', lambda *args: None)
    cfg = Config(dict(find_unused_parameters=True, model_wrapper_cfg=dict(static_graph=True)))
    launch.prepare(cfg, 'pytorch')
    assert cfg.model_wrapper_cfg == dict(
        type='CPUDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=True,
        static_graph=True,
        device_ids=None,
    )


def test_timeout_of_the_config_is_used(monkeypatch):
    found = []
    monkeypatch.setattr(launch, 'init_distributed', lambda launcher, timeout: found.append(timeout))
    launch.prepare(Config(dict(env_cfg=dict(dist_cfg=dict(backend='nccl', timeout=60)))), 'none')
    launch.prepare(Config(dict()), 'none')
    assert found == [60, None]


def test_leaving_without_having_joined_does_nothing():
    launch.leave_distributed()


def test_a_process_leaves_its_group(tmp_path):
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    launch.leave_distributed()
    assert not torch.distributed.is_initialized()


def test_a_number_of_the_recipe_changes_what_follows():
    cfg = launch.read_config('configs/poa/vitt_digits.py', {'recipe.max_iters': 40, 'recipe.ramp_iters': 7})
    assert (cfg.train_cfg.max_iters, cfg.param_scheduler[1].end, cfg.custom_hooks[1].patch_loss_start) == (40, 40, 7)
    cfg = launch.read_config('configs/poa/vitt_digits.py', {'recipe.max_iters': 40, 'train_cfg.max_iters': 3})
    assert (cfg.train_cfg.max_iters, cfg.param_scheduler[1].end) == (3, 40)
    with pytest.raises(ValueError, match='recipe has no iters'):
        launch.read_config('configs/poa/vitt_digits.py', {'recipe.iters': 40})


@pytest.mark.parametrize(
    ('backbone', 'expected'),
    [
        (dict(type='mmpretrain.SwinTransformer', frozen_stages=1), True),
        (dict(type='SwinTransformer', frozen_stages=0), True),
        (dict(type='mmpretrain.SwinTransformer', frozen_stages=-1), None),
        (dict(type='mmpretrain.SwinTransformer'), None),
        (dict(type='mmpretrain.VisionTransformer', frozen_stages=1), None),
    ],
)
@pytest.mark.parametrize('launcher', ['pytorch', 'none'])
def test_a_swin_that_freezes_itself_late(monkeypatch, launcher, backbone, expected):
    monkeypatch.setattr(launch, 'init_distributed', lambda *args: None)
    cfg = Config(dict(model=dict(type='EncoderDecoder', backbone=backbone)))
    launch.prepare(cfg, launcher)
    assert cfg.get('find_unused_parameters') == (expected if launcher == 'pytorch' else None)
    if launcher == 'pytorch' and not torch.cuda.is_available():
        assert cfg.model_wrapper_cfg.find_unused_parameters == bool(expected)
    cfg = Config(dict(model=dict(backbone=backbone), find_unused_parameters=False))
    launch.prepare(cfg, launcher)
    assert cfg.find_unused_parameters is False


@pytest.mark.parametrize(('length', 'interval'), [(20, 2), (3, 1), (49, 4), (50, 50), (1000, 50)])
def test_a_short_run_has_lines_in_its_log(length, interval):
    cfg = Config(
        dict(default_hooks=dict(logger=dict(type='LoggerHook', interval=50)), train_cfg=dict(max_iters=length))
    )
    launch._show_short_runs(cfg)
    assert cfg.default_hooks.logger.interval == interval
    launch._show_short_runs(Config(dict(train_cfg=dict(max_epochs=3))))
