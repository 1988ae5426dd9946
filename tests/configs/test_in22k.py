from pathlib import Path

import pytest
from image_files import encoded, photo
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from shard_files import write_shard
from small_configs import shrink

from poa_mm.engine.launch import prepare

CONFIGS = Path(__file__).parents[2] / 'configs' / 'poa'


def test_the_schedule_is_the_papers_in_samples():
    ours, paper = (Config.fromfile(CONFIGS / f'vitl_{name}.py') for name in ('in22k', 'in1k'))
    for key in ('optim_wrapper', 'param_scheduler', 'custom_hooks', 'train_cfg', 'model'):
        assert ours[key] == paper[key]
    assert ours.train_dataloader.dataset.pipeline == paper.train_dataloader.dataset.pipeline


@pytest.fixture
def cfg(tmp_path):
    """The config on three fake shards of ten images, with a small network."""
    cfg = Config.fromfile(CONFIGS / 'vitl_in22k.py')
    shrink(cfg, tmp_path / 'work_dirs' / 'run')
    for shard in range(3):
        numbers = range(10 * shard, 10 * shard + 10)
        files = [(f'{number:09d}.jpg', encoded(photo((64, 48), seed=number))) for number in numbers]
        write_shard(tmp_path / f'train-{shard:06d}.tar', files)
    cfg.train_dataloader.dataset.update(data_root=str(tmp_path), shards='train-{000000..000002}.tar')
    cfg.train_cfg.max_iters, cfg.param_scheduler = 5, None
    cfg.recipe.gpus = 1
    return cfg


def test_some_iterations_on_fake_shards(cfg, tmp_path):
    init_default_scope('mmpretrain')
    prepare(cfg, 'none')
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert len(runner.train_dataloader.dataset) == 30
    assert runner.iter == 5
    assert len(list((tmp_path / 'work_dirs' / 'image_index').glob('*.index'))) == 1
