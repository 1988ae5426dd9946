import ast
import copy
import json
from pathlib import Path

import pytest
from mmengine.config import Config

from poa_mm.recipes import Recipe, follow, schedule

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / 'configs' / 'poa'
# What the recipes with fixed numbers were when each spelled out its schedules.
SPELLED_OUT = json.loads((ROOT / 'tests' / 'configs' / 'spelled_out.json').read_text())
ENTRIES = ('optim_wrapper', 'param_scheduler', 'custom_hooks', 'train_cfg')


def plain(value):
    """As the dump: lists for tuples, and numbers to rounding."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return pytest.approx(value, rel=1e-12) if isinstance(value, float) else value


def in1k(**changes):
    return dict(gpus=32, batch_size=50, images=1281167, epochs=346, warmup_epochs=10, ramp_epochs=30) | changes


@pytest.mark.parametrize('name', SPELLED_OUT)
def test_says_what_was_spelled_out(name):
    cfg = Config.fromfile(CONFIGS / f'{name}.py').to_dict()
    expected = SPELLED_OUT[name]
    expected['optim_wrapper'].setdefault('accumulative_counts', 1)  # mmengine's default
    assert {key: plain(cfg[key]) for key in ENTRIES} == {key: expected[key] for key in ENTRIES}
    assert cfg['train_dataloader']['batch_size'] == expected['batch_size']


@pytest.mark.parametrize('path', sorted(CONFIGS.glob('*.py')), ids=lambda path: path.stem)
def test_a_config_is_what_its_recipe_says(path):
    cfg = Config.fromfile(path).to_dict()
    del cfg['train_cfg']['type']
    expected = {key: plain(value) for key, value in schedule(**cfg['recipe'])._asdict().items()}
    assert {key: plain(cfg[key]) for key in ENTRIES} == expected
    assert cfg['train_dataloader']['batch_size'] == cfg['recipe']['batch_size']


@pytest.mark.parametrize('path', sorted(CONFIGS.glob('*.py')), ids=lambda path: path.stem)
def test_a_file_shows_what_is_particular_to_its_recipe(path):
    text = path.read_text()
    docstring = ast.parse(text).body[0]
    lines = text.splitlines()[docstring.end_lineno :]
    assert len([line for line in lines if line.strip() and not line.strip().startswith('#')]) <= 40


def test_epochs_are_whole_updates():
    assert Recipe(**in1k()).epoch_iters == 800
    assert Recipe(batch_size=64, accumulate=16, images=1281167, epochs=1).epoch_iters == 1251 * 16
    assert Recipe(batch_size=64, accumulate=4, images=100, epochs=1).epoch_iters == 4  # fewer images than a batch


def test_learning_rate_follows_the_root_of_the_batch():
    rate = Recipe(**in1k()).learning_rate
    assert rate == pytest.approx(0.005)
    assert Recipe(**in1k(gpus=8)).learning_rate == pytest.approx(rate / 2)
    assert Recipe(**in1k(gpus=8, accumulate=4)).learning_rate == rate


def test_no_warm_up_and_no_stretch():
    scheduler = schedule(batch_size=4, max_iters=10).param_scheduler
    assert [entry['type'] for entry in scheduler] == ['CosineAnnealingLR', 'CosineAnnealingParamScheduler']
    assert all('T_max' not in entry and entry['begin'] == 0 and entry['end'] == 10 for entry in scheduler)


def test_a_run_that_ends_in_its_warm_up():
    scheduler = schedule(batch_size=4, max_iters=20, warmup_iters=100).param_scheduler
    assert [entry['type'] for entry in scheduler] == ['LinearLR', 'CosineAnnealingParamScheduler']


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(epoch=3), 'recipe has no epoch; valid: batch_size, gpus'),
        (dict(max_iters=3), 'lengths in epochs and in iterations, epochs, warmup_epochs, ramp_epochs and max_iters'),
        (dict(images=None), 'recipe of 346 epochs needs the number of images'),
        (dict(epochs=None), 'needs its length: epochs or max_iters'),
        (dict(gpus=0), 'recipe.gpus 0 is not a positive whole number'),
        (dict(batch_size='64'), "recipe.batch_size '64' is not"),
        (dict(amp='fp8'), "recipe.amp 'fp8' is not valid: float16, bfloat16 or None"),
        (dict(amp=True), 'recipe.amp True is not valid'),
        (dict(lr=-0.1), 'recipe.lr -0.1 is not a positive number'),
        (dict(clip_grad=float('nan')), 'recipe.clip_grad nan is not a positive number'),
    ],
)
def test_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        schedule(**in1k(**changes))


def test_batch_size_is_needed():
    with pytest.raises(ValueError, match='needs batch_size'):
        schedule(max_iters=3)


# --- follow -----------------------------------------------------------------------------------


def run(**recipe):
    recipe = recipe or in1k()
    entries = schedule(**recipe)._asdict()
    return Config(copy.deepcopy(dict(recipe=recipe, train_dataloader=dict(batch_size=recipe['batch_size']), **entries)))


def says(cfg):
    return {key: plain(cfg.to_dict()[key]) for key in ENTRIES}


@pytest.mark.parametrize(
    'changes',
    [
        dict(gpus=8),
        dict(batch_size=64, accumulate=2),
        dict(epochs=20, warmup_epochs=0),
        dict(stretch=1 / 0.9),
        dict(amp='bfloat16', momentum=(0.9, 0.99)),
    ],
    ids=str,
)
@pytest.mark.parametrize('start', [{}, dict(stretch=1 / 0.78), dict(amp='float16')], ids=str)
def test_follow_is_as_written_so_at_first(start, changes):
    cfg = run(**in1k(**start))
    follow(cfg, **changes)
    fresh = run(**in1k(**start | changes))
    assert says(cfg) == says(fresh)
    assert cfg.recipe.to_dict() == fresh.recipe.to_dict()
    assert cfg.train_dataloader.batch_size == fresh.train_dataloader.batch_size


def test_a_run_that_is_cut_off_stays_so():
    cfg = run(gpus=1, batch_size=32, max_iters=1000)
    cfg.train_cfg.max_iters = 2
    follow(cfg, max_iters=400)
    assert (cfg.train_cfg.max_iters, cfg.param_scheduler[0].end) == (2, 400)
    cfg.train_cfg.max_iters = 500
    with pytest.raises(ValueError, match='max_iters is 500 in the config, and 400 by its recipe'):
        follow(cfg, max_iters=300)


def test_lengths_in_iterations_stay_the_same_in_images():
    cfg = run(gpus=2, batch_size=32, max_iters=1000, warmup_iters=100, ramp_iters=300)
    follow(cfg, gpus=1)
    assert cfg.train_cfg.max_iters == 2000
    assert cfg.param_scheduler[0].end == 200
    follow(cfg, batch_size=64, max_iters=10)
    assert (cfg.train_cfg.max_iters, cfg.param_scheduler[0].end) == (10, 100)


def test_what_a_config_sets_itself_stays():
    cfg = run()
    cfg.custom_hooks.append(dict(type='CompileBlocksHook'))
    cfg.optim_wrapper.optimizer.betas = (0.8, 0.9)
    follow(cfg, gpus=8)
    assert [hook['type'] for hook in cfg.custom_hooks][-2:] == ['SupernetCheckpointHook', 'CompileBlocksHook']
    assert tuple(cfg.optim_wrapper.optimizer.betas) == (0.8, 0.9)
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(0.0025)


def test_what_a_config_sets_itself_is_not_overwritten():
    cfg = run()
    cfg.optim_wrapper.optimizer.lr = 0.1
    before = copy.deepcopy(cfg.to_dict())
    with pytest.raises(ValueError, match=r'optimizer\.lr is 0\.1 in the config, and 0\.005 by its recipe'):
        follow(cfg, gpus=8)
    assert cfg.to_dict() == before
    cfg = run()
    cfg.custom_hooks = cfg.custom_hooks[:1]
    with pytest.raises(ValueError, match='custom_hooks has no POAScheduleHook'):
        follow(cfg, gpus=8)


def test_a_config_without_recipe():
    with pytest.raises(ValueError, match="has no 'recipe'"):
        follow(Config(dict(a=1)), gpus=2)
