import pytest
import torch
from mmengine.config import Config

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


@pytest.mark.skipif(torch.cuda.is_available(), reason='about machines without a GPU')
def test_wrapper_of_a_cpu_run_has_no_devices(monkeypatch):
    monkeypatch.setattr(launch, 'init_distributed', lambda *args: None)
    cfg = Config(dict(find_unused_parameters=True, model_wrapper_cfg=dict(static_graph=True)))
    launch.prepare(cfg, 'pytorch')
    assert cfg.model_wrapper_cfg == dict(
        type='MMDistributedDataParallel',
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
