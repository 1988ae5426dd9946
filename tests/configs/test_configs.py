"""Every shipped config builds, and the recipe's numbers are those of the paper."""

import copy
import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, HOOKS, MODELS, PARAM_SCHEDULERS, TRANSFORMS, init_default_scope

from poa_mm.engine.hooks.teacher_ema_hook import cosine
from poa_mm.evaluation.data import _build_loader

SHARED = Path(os.environ.get('POA_MM_SHARED', Path(__file__).resolve().parents[3] / 'shared'))
CONFIGS = Path(__file__).parents[2] / 'configs'
PRETRAINING = sorted((CONFIGS / 'poa').glob('*.py'))


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmpretrain')


class Recipe(NamedTuple):
    """What the paper and its code say of one supernet; every run is on 32 GPUs."""

    batch: int
    epoch: int
    epochs: int
    warmup: int
    scale: float  # `iter_num_scale`
    layer_decay: float
    layers: int  # of different learning rates, the stem's included
    stem_lr: float  # factor on that of the stem
    mask_ratio: tuple[float, float]
    subnets: int
    select_scale: float | tuple[float, float]
    names: dict[str, str]
    millions: dict[str, float]
    drop_path: float | None


RECIPES = {
    'vitl': Recipe(
        batch=1600,
        epoch=800,
        epochs=346,
        warmup=10,
        scale=0.78,
        layer_decay=0.9,
        layers=26,
        stem_lr=0.2,
        mask_ratio=(0.1, 0.5),
        subnets=143,
        select_scale=3,
        names=dict(small='384x12', base='768x12', large='1024x24'),
        millions=dict(small=21.67, base=85.82, large=303.4),
        drop_path=0.2,
    ),
    'swinb': Recipe(
        batch=2048,
        epoch=625,
        epochs=346,
        warmup=30,
        scale=0.9,
        layer_decay=0.9,
        layers=26,
        stem_lr=0.2,
        mask_ratio=(0.1, 0.3),
        subnets=39,
        select_scale=2,
        names=dict(tiny='96x6', small='96x18', base='128x18'),
        millions=dict(tiny=27.52, small=48.84, base=86.74),  # and some biases, for there are twice as many heads
        drop_path=0.2,
    ),
    'r152': Recipe(
        batch=1280,
        epoch=1000,
        epochs=692,
        warmup=30,
        scale=1,
        layer_decay=0.95,
        layers=51,
        stem_lr=1.0,
        mask_ratio=(0.1, 0.3),
        subnets=465,
        select_scale=(1, 2),
        names=dict(r50='64x3-4-6-3', r101='64x3-4-23-3', r152='64x3-8-36-3'),
        millions=dict(r50=23.51, r101=42.50, r152=58.14),
        drop_path=None,  # the class has none
    ),
}


@pytest.fixture(scope='module', params=RECIPES)
def recipe(request):
    """The numbers of the paper, and the config that has to hold them."""
    return RECIPES[request.param], Config.fromfile(CONFIGS / 'poa' / f'{request.param}_in1k.py')


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


def test_supernet_of_the_recipe(recipe):
    expected, cfg = recipe
    model = built_on_meta(cfg)
    space = model.backbone.space
    assert len(space) == expected.subnets
    assert {name: str(subnet) for name, subnet in space.aliases.items()} == expected.names
    assert {name: model.backbone.cost(space.parse(name)).params / 1e6 for name in expected.names} == pytest.approx(
        expected.millions, rel=2e-3
    )
    plain = model.backbone.cost(space.largest).params
    assert plain == sum(p.numel() for name, p in model.backbone.named_parameters() if name != 'mask_token')
    assert model.head.num_prototypes == (8192, 16384, 32768, 65536)
    assert (model.weight_is, model.weight_es1, model.weight_es2) == (0.8, 0.2, 0.2)
    assert getattr(model.backbone, 'drop_path_rate', None) == expected.drop_path
    copies = {subnet: space.multiplicity(subnet, expected.select_scale) for subnet in space}
    del copies[space.largest]
    assert Counter(model.deck.cards) == copies


def test_batch_and_masks_of_the_recipe(recipe):
    expected, cfg = recipe
    assert cfg.recipe.gpus * cfg.train_dataloader.batch_size == expected.batch
    load, views, mask, _ = cfg.train_dataloader.dataset.pipeline
    assert (load.type, views.num_views) == ('SafeLoadImageFromFile', [1, 1, 8])
    assert (tuple(mask.ratio), mask.prob) == (expected.mask_ratio, 0.5)


def test_learning_rates_of_the_recipe(recipe):
    """That of the stem is the lowest: at the bottom of all layers, and with a factor of its own."""
    expected, cfg = recipe
    model = built_on_meta(cfg)
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    rates = [group['lr'] for group in groups]
    peak = 0.004 * (expected.batch / 1024) ** 0.5
    assert max(rates) == pytest.approx(peak)
    assert min(rates) == pytest.approx(expected.stem_lr * peak * expected.layer_decay ** (expected.layers - 1))
    assert {group['weight_decay'] for group in groups} == {0.0, 0.04}


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


def test_schedules_of_the_recipe_at_chosen_steps(recipe):
    """Against the closed form, on a run shortened fiftyfold with all of its proportions."""
    expected, cfg = recipe
    assert cfg.train_cfg.max_iters == expected.epoch * expected.epochs
    short = copy.deepcopy(cfg)
    for scheduler in short.param_scheduler:
        for key in ('begin', 'end', 'T_max'):
            if key in scheduler:
                scheduler[key] = scheduler[key] // 50
    warmup, last = expected.warmup * expected.epoch // 50, cfg.train_cfg.max_iters // 50 - 1
    total = cfg.train_cfg.max_iters / expected.scale / 50
    peak = 0.004 * (expected.batch / 1024) ** 0.5
    steps = [0, warmup // 2, warmup - 1, warmup, 1000, 2000, last]
    rates = [0, peak * (warmup // 2) / (warmup - 1), peak]
    rates += [cosine(peak, 2e-5, step - warmup, total - warmup) for step in steps[3:]]
    assert schedule(short, 'lr', steps) == pytest.approx(rates, rel=1e-3, abs=1e-6)
    decays = [cosine(0.04, 0.4, step, total) for step in steps]
    assert schedule(short, 'weight_decay', steps) == pytest.approx(decays, rel=1e-3)
    assert (decays[-1] < 0.395) == (expected.scale < 1)  # a stretched cosine is cut


def test_hooks_of_the_recipe(recipe):
    expected, cfg = recipe
    hooks = {hook.type: hook for hook in cfg.custom_hooks}
    ema = HOOKS.build(hooks['TeacherEMAHook'])
    assert ema.momentum == (0.992, 0.9999)
    assert ema.stretch == pytest.approx(1 / expected.scale)
    schedule = HOOKS.build(hooks['POAScheduleHook'])
    assert schedule.teacher_temp_iters == schedule.patch_loss_start == 30 * expected.epoch
    assert schedule.freeze_prototypes_iters == expected.epoch
    assert schedule.teacher_temp_at(0) == pytest.approx(0.04)
    assert schedule.teacher_temp_at(15 * expected.epoch) == pytest.approx(0.055, abs=1e-5)
    assert schedule.teacher_temp_at(30 * expected.epoch) == 0.07


def test_decay_of_spared_groups_stays_zero(recipe):
    _, cfg = recipe
    model = built_on_meta(cfg)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    scheduler = PARAM_SCHEDULERS.build(cfg.param_scheduler[2], default_args=dict(optimizer=wrapper))
    spared = [group for group in wrapper.optimizer.param_groups if group['weight_decay'] == 0]
    others = [group for group in wrapper.optimizer.param_groups if group['weight_decay'] > 0]
    for _ in range(5):
        scheduler.step()
    assert spared and all(group['weight_decay'] == 0 for group in spared)
    assert others and all(group['weight_decay'] > 0.04 for group in others)


@pytest.mark.parametrize('name', ['swint_digits', 'resnet_digits'])
def test_digits_lie_in_the_same_places_at_every_evaluation(name):
    cfg = Config.fromfile(CONFIGS / 'poa' / f'{name}.py')
    cfg.knn.query.batch_size = 16
    first, again = (next(iter(_build_loader(copy.deepcopy(cfg.knn.query))))['inputs'] for _ in range(2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    rows = [image.sum(dim=(0, 2)).nonzero()[0].item() for image in first]
    assert len(set(rows)) > 2, 'one image lies higher than the next'
