"""Learning rates, weight decay and schedules of the full-size recipes are those that the authors' code computes."""

import json
import os
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, MODELS, PARAM_SCHEDULERS, init_default_scope

from poa_mm.deploy.public_checkpoint import convert_public_state_dict
from poa_mm.engine.hooks.teacher_ema_hook import cosine

SHARED = Path(os.environ.get('POA_MM_SHARED', Path(__file__).resolve().parents[3] / 'shared'))
CONFIGS = Path(__file__).parents[2] / 'configs' / 'poa'
RECIPES = dict(vit='vitl_in1k', swin='swinb_in1k', resnet='r152_in1k')
WARMUP_START = 1e-6  # of the peak, where the authors start at 0


@pytest.fixture(scope='module', params=RECIPES)
def recipe(request):
    """The numbers of the authors' code, and the config that has to hold them."""
    path = SHARED / 'golden' / 'recipes.json'
    if not path.is_file():
        if 'POA_MM_SHARED' in os.environ:
            pytest.fail(f'POA_MM_SHARED is set, but there is no {path}')
        pytest.skip('no golden recipes: set POA_MM_SHARED to the folder that holds golden/')
    init_default_scope('mmpretrain')
    return json.loads(path.read_text())[request.param], Config.fromfile(CONFIGS / f'{RECIPES[request.param]}.py')


def test_learning_rate_and_weight_decay_of_every_parameter(recipe):
    authors, cfg = recipe
    # The importer renames tensors; these hold the place of their parameter in the list, in as many channels as merge.
    places = {name: torch.full((4,), float(place)) for place, name in enumerate(authors['groups'])}
    multipliers = list(authors['groups'].values())
    renamed = convert_public_state_dict(places)
    ours = {name: multipliers[int(place.max())] for name, place in renamed.items()}

    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    names = {param: name for name, param in model.named_parameters()}
    found = {
        names[param]: [group['lr'] / cfg.optim_wrapper.optimizer.lr, group['weight_decay'] / 0.04, group['prototypes']]
        for group in optimizer.param_groups
        for param in group['params']
    }
    assert found.keys() == ours.keys()
    different = {name: (found[name], ours[name]) for name in ours if found[name] != pytest.approx(ours[name], rel=1e-9)}
    assert not different


def rates(cfg, iterations):
    """Learning rate and weight decay at some iterations of a group with the base settings."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0, weight_decay=0.04)
    optimizer.param_groups[0]['lr'] = optimizer.defaults['lr'] = cfg.optim_wrapper.optimizer.lr
    optimizer.step()  # as schedulers ask for
    schedulers = [PARAM_SCHEDULERS.build(dict(s), default_args=dict(optimizer=optimizer)) for s in cfg.param_scheduler]
    found = {}
    for iteration in range(max(iterations) + 1):
        if iteration in iterations:
            found[iteration] = (optimizer.param_groups[0]['lr'], optimizer.param_groups[0]['weight_decay'])
        for scheduler in schedulers:
            scheduler.step()
    return found


def test_learning_rates_and_weight_decays_over_the_run(recipe):
    authors, cfg = recipe
    wanted = {int(step): values for step, values in authors['schedule'].items()}
    assert authors['total_iters'] == cfg.train_cfg.max_iters == 1 + max(wanted)
    for step, (lr, weight_decay) in rates(cfg, wanted.keys()).items():
        # During the warm-up a millionth of the peak is on top, which fades out.
        assert lr == pytest.approx(wanted[step]['lr'], rel=1e-4, abs=1.001 * WARMUP_START * authors['base_lr']), step
        assert weight_decay == pytest.approx(wanted[step]['weight_decay'], rel=1e-4), step


def test_teacher_and_frozen_prototypes(recipe):
    authors, cfg = recipe
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(authors['base_lr'], rel=1e-9)
    hooks = {hook.type: HOOKS.build(hook) for hook in cfg.custom_hooks}
    ema, schedule = hooks['TeacherEMAHook'], hooks['POAScheduleHook']
    for step, values in authors['schedule'].items():
        step = int(step)
        momentum = cosine(*ema.momentum, step, ema.stretch * cfg.train_cfg.max_iters)
        assert momentum == pytest.approx(values['momentum'], rel=1e-7)
        assert schedule.teacher_temp_at(step) == pytest.approx(values['teacher_temp'], rel=1e-9)
        frozen = values['last_layer_lr'] == 0 < step or step == 0
        assert (step < schedule.freeze_prototypes_iters) == frozen
