"""Recipes for fewer GPUs keep what the 32-GPU recipe is in images."""

from pathlib import Path

import pytest
from mmengine.config import Config

from poa_mm.recipes import read_recipe

CONFIGS = Path(__file__).parents[2] / 'configs' / 'poa'
GPUS = dict(vitl_in1k_8gpu=8, vitb_in1k_1gpu=1)


@pytest.mark.parametrize('name', GPUS)
def test_batch_schedules_and_learning_rates_are_those_of_32_gpus(name):
    ours, paper = (Config.fromfile(CONFIGS / f'{stem}.py') for stem in (name, 'vitl_in1k'))
    recipe, papers = read_recipe(ours.recipe), read_recipe(paper.recipe)
    assert (recipe.gpus, recipe.accumulate) == (GPUS[name], 1)
    assert recipe.global_batch == papers.global_batch == 1600
    assert recipe.gpus * ours.train_dataloader.batch_size == 1600
    assert recipe.learning_rate == papers.learning_rate
    for length in ('max', 'warmup', 'ramp', 'freeze'):  # in iterations of as many images
        assert recipe.iters(length) == papers.iters(length)
    for key in ('optim_wrapper', 'param_scheduler', 'custom_hooks', 'train_cfg'):
        assert ours[key] == paper[key]


@pytest.mark.parametrize('name', GPUS)
def test_a_piece_is_no_larger_than_a_batch_of_the_paper(name):
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    assert cfg.recipe.batch_size / cfg.model.micro_batches <= 50


def test_the_network_is_the_papers_but_for_one_gpu():
    ours, paper, small = (
        Config.fromfile(CONFIGS / f'{n}.py').model for n in ('vitl_in1k_8gpu', 'vitl_in1k', 'vitb_in1k_1gpu')
    )
    assert {**ours, 'micro_batches': 1} == {**paper, 'micro_batches': 1}
    differ = {key for key in small if small[key] != paper.get(key)}
    assert differ == {'backbone', 'micro_batches'}
    assert {key for key in small.backbone if small.backbone[key] != paper.backbone[key]} == {'arch', 'widths', 'depths'}
