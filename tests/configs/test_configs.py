"""Every shipped config builds, and the recipe's numbers are those of the paper."""

import os
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, HOOKS, MODELS, PARAM_SCHEDULERS, TRANSFORMS, init_default_scope

from poa_mm.engine.hooks.teacher_ema_hook import cosine

SHARED = Path(os.environ.get('POA_MM_SHARED', Path(__file__).resolve().parents[3] / 'shared'))
CONFIGS = Path(__file__).parents[2] / 'configs'
PRETRAINING = sorted((CONFIGS / 'poa').glob('*.py'))


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmpretrain')


@pytest.fixture(scope='module')
def vitl():
    return Config.fromfile(CONFIGS / 'poa' / 'vitl_in1k.py')


def built_on_meta(cfg):
    with torch.device('meta'):
        return MODELS.build(cfg.model)


@pytest.mark.parametrize('path', PRETRAINING, ids=lambda path: path.stem)
def test_builds(path):
    cfg = Config.fromfile(path)
    assert cfg.filename.endswith('.py')
    assert path.read_text().startswith('"""'), 'a config explains itself'
    model = built_on_meta(cfg)
    for transform in cfg.train_dataloader.dataset.pipeline:
        TRANSFORMS.build(transform)
    for hook in cfg.custom_hooks:
        HOOKS.build(hook)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    for scheduler in cfg.param_scheduler:
        PARAM_SCHEDULERS.build(scheduler, default_args=dict(optimizer=wrapper))
    mask = next(t for t in cfg.train_dataloader.dataset.pipeline if t.type == 'BlockMask')
    grid = model.backbone.mask_grid(model.backbone.img_size)
    assert TRANSFORMS.build(mask).grid == grid
    assert cfg.train_cfg.max_iters == max(scheduler.end for scheduler in cfg.param_scheduler)
    assert {'bank', 'query'} <= set(cfg.knn)


def test_fashion_mnist_is_scored_on_its_test_part():
    path = SHARED / 'data' / 'fashion_mnist'
    if not path.is_dir():
        pytest.skip('no Fashion-MNIST: set POA_MM_SHARED to the folder that holds data/fashion_mnist')
    knn = Config.fromfile(CONFIGS / 'poa' / 'vitt_fmnist.py').knn
    sizes = [len(DATASETS.build(dict(knn[part].dataset, data_root=str(path)))) for part in ('bank', 'query')]
    assert sizes[0] == 60_000
    assert 9_000 < sizes[1] <= 10_000


def test_supernet_of_the_recipe(vitl):
    model = built_on_meta(vitl)
    space = model.backbone.space
    assert len(space) == 143
    assert {name: str(space.parse(name)) for name in ('small', 'base', 'large')} == dict(
        small='384x12', base='768x12', large='1024x24'
    )
    assert model.head.num_prototypes == (8192, 16384, 32768, 65536)
    assert (model.weight_is, model.weight_es1, model.weight_es2) == (0.8, 0.2, 0.2)
    assert model.backbone.drop_path_rate == 0.2
    params = model.backbone.cost(space.largest).params
    assert params == pytest.approx(303.4e6, rel=1e-3)


def schedule(cfg, name, steps):
    """Value of a parameter group's entry at some iterations, for the group whose settings are the base ones."""
    param = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([param], lr=cfg.optim_wrapper.optimizer.lr, weight_decay=0.04)
    optimizer.step()
    schedulers = [PARAM_SCHEDULERS.build(s, default_args=dict(optimizer=optimizer)) for s in cfg.param_scheduler]
    values = {}
    for iteration in range(max(steps) + 1):
        if iteration in steps:
            values[iteration] = optimizer.param_groups[0][name]
        for scheduler in schedulers:
            scheduler.step()
    return [values[step] for step in steps]


def test_schedules_of_the_recipe_at_chosen_steps(vitl):
    """Against the closed form, on a run shortened a hundredfold with all of its proportions."""
    short = vitl.copy()
    for scheduler in short.param_scheduler:
        for key in ('begin', 'end', 'T_max'):
            if key in scheduler:
                scheduler[key] = scheduler[key] // 100
    assert vitl.max_iters == 276_800
    steps = [0, 40, 79, 80, 1000, 2000, 2767]
    total = 3548  # 276800 / 0.78 / 100
    peak = 0.004 * (1600 / 1024) ** 0.5
    expected = [0, peak * 40 / 79, peak] + [cosine(peak, 2e-5, t - 80, total - 80) for t in steps[3:]]
    assert schedule(short, 'lr', steps) == pytest.approx(expected, rel=1e-4, abs=1e-7)
    expected = [cosine(0.04, 0.4, t, total) for t in steps]
    assert schedule(short, 'weight_decay', steps) == pytest.approx(expected, rel=1e-4)
    assert expected[-1] < 0.4  # cut, as the cosine is stretched


def test_hooks_of_the_recipe(vitl):
    hooks = {hook.type: hook for hook in vitl.custom_hooks}
    ema = hooks['TeacherEMAHook']
    assert ema.momentum == (0.992, 0.9999)
    assert ema.stretch == pytest.approx(1 / 0.78)
    settings = hooks['POAScheduleHook']
    assert settings.teacher_temp_iters == settings.patch_loss_start == 30 * 800
    assert settings.freeze_prototypes_iters == 800
    schedule = HOOKS.build(settings)
    assert schedule.teacher_temp_at(0) == pytest.approx(0.04)
    assert schedule.teacher_temp_at(12_000) == pytest.approx(0.055, abs=1e-5)
    assert schedule.teacher_temp_at(24_000) == 0.07


def test_decay_of_spared_groups_stays_zero(vitl):
    model = built_on_meta(vitl)
    wrapper = build_optim_wrapper(model, vitl.optim_wrapper)
    scheduler = PARAM_SCHEDULERS.build(vitl.param_scheduler[2], default_args=dict(optimizer=wrapper))
    spared = [group for group in wrapper.optimizer.param_groups if group['weight_decay'] == 0]
    others = [group for group in wrapper.optimizer.param_groups if group['weight_decay'] > 0]
    for _ in range(5):
        scheduler.step()
    assert spared and all(group['weight_decay'] == 0 for group in spared)
    assert others and all(group['weight_decay'] > 0.04 for group in others)
