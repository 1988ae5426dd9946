from pathlib import Path

import pytest
from mmengine.config import Config

from poa_mm.engine import recipe_checks
from poa_mm.engine.launch import read_config
from poa_mm.engine.recipe_checks import BatchError, check_lengths, fit_batch, warn_of_accumulation
from poa_mm.recipes import schedule

CONFIGS = Path(__file__).parents[2] / 'configs'
PRETRAINING = sorted((CONFIGS / 'poa').glob('*.py'))


@pytest.fixture
def warned(monkeypatch):
    heard = []
    monkeypatch.setattr(recipe_checks, '_warn', heard.append)
    return heard


def run(**recipe):
    entries = schedule(**recipe)._asdict()
    return Config(dict(recipe=recipe, train_dataloader=dict(batch_size=recipe['batch_size']), **entries))


def in1k(**changes):
    return dict(gpus=32, batch_size=50, images=1281167, epochs=346, warmup_epochs=10, ramp_epochs=30) | changes


@pytest.mark.parametrize('path', PRETRAINING, ids=lambda path: path.stem)
def test_shipped_recipes_on_their_number_of_processes_and_on_another(path, warned):
    cfg = read_config(path)
    gpus = cfg.recipe.get('gpus', 1)
    fit_batch(cfg, gpus)
    check_lengths(cfg)
    assert not warned
    with pytest.raises(BatchError, match=rf'for {gpus} GPUs x .*this run has {gpus + 1} GPUs x .*--scale-to-gpus'):
        fit_batch(cfg, gpus + 1)


@pytest.mark.parametrize('path', sorted((CONFIGS / 'probe').glob('[lf]*.py')), ids=lambda path: path.stem)
def test_probes_and_fine_tuning_are_for_8(path, warned):
    cfg = read_config(path)
    fit_batch(cfg, 8)
    with pytest.raises(BatchError, match=r'for 1,024 images an update, and this run has 2 GPUs x 128 images = 256'):
        fit_batch(cfg, 2)
    fit_batch(cfg, 2, scale=True)
    assert cfg.auto_scale_lr.enable
    assert not warned


def test_both_numbers_and_what_to_do():
    with pytest.raises(BatchError) as error:
        fit_batch(run(**in1k()), 8)
    text = str(error.value)
    assert '32 GPUs x 50 images = 1,600 images an update' in text
    assert '8 GPUs x 50 images = 400 images an update' in text
    assert 'Start 32 processes' in text
    assert '--cfg-options recipe.gpus=8 recipe.batch_size=200 model.micro_batches=4' in text
    with pytest.raises(BatchError) as error:
        fit_batch(run(**in1k()), 5)
    assert 'keep the batch' not in str(error.value)  # 1,600 are no whole number of 250
    with pytest.raises(BatchError, match=r'recipe\.gpus=2 recipe\.accumulate=16$'):
        fit_batch(run(**in1k(gpus=8, accumulate=4)), 2)


def test_pieces_stay_as_large_as_they_are():
    cfg = run(**in1k())
    cfg.model = dict(type='POA', micro_batches=5)
    with pytest.raises(BatchError, match=r'recipe\.gpus=8 recipe\.batch_size=200 model\.micro_batches=20$'):
        fit_batch(cfg, 8)


def test_accumulation_is_not_a_larger_batch(warned):
    cfg = run(**in1k(gpus=8, accumulate=4))
    cfg.model = dict(type='POA')
    text = warn_of_accumulation(cfg)
    assert warned == [text]
    assert 'mean of 4 batches' in text and 'Sinkhorn-Knopp balances and KoLeo spreads the 50 images' in text
    assert 'recipe.batch_size=200 recipe.accumulate=1 model.micro_batches=4' in text
    cfg.model.type = 'ImageClassifier'
    assert warn_of_accumulation(cfg) is None
    assert warn_of_accumulation(run(**in1k())) is None
    assert len(warned) == 1


@pytest.mark.parametrize('processes', [1, 8, 64])
def test_scaled_it_is_the_recipe_of_that_number(processes, warned):
    cfg = run(**in1k())
    fit_batch(cfg, processes, scale=True)
    assert cfg.to_dict() == run(**in1k(gpus=processes)).to_dict()
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(0.004 * (processes * 50 / 1024) ** 0.5)
    images = cfg.train_cfg.max_iters * processes * 50
    assert images == pytest.approx(346 * 1281167, rel=2e-3)
    assert not warned


def test_the_way_that_keeps_the_batch(warned):
    cfg = run(**in1k(gpus=8, accumulate=4))
    fit_batch(cfg, 8)
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(0.005)
    cfg = run(**in1k())
    cfg.train_dataloader.batch_size = 200
    fit_batch(cfg, 8)  # as many images in another way
    assert not warned


@pytest.mark.parametrize(('batch_size', 'accumulate'), [(25, 1), (50, 2)])
def test_a_loader_beside_the_recipe_is_warned_of(warned, batch_size, accumulate):
    cfg = run(**in1k())
    cfg.train_dataloader.batch_size = batch_size
    cfg.optim_wrapper.accumulative_counts = accumulate
    fit_batch(cfg, 32)
    assert len(warned) == 1
    assert '1,600 images an update' in warned[0] and f'{32 * batch_size * accumulate:,} images' in warned[0]
    assert 'recipe.batch_size and recipe.accumulate' in warned[0]


def test_configs_of_the_libraries_are_warned_of(warned):
    cfg = Config(dict(train_dataloader=dict(batch_size=2), auto_scale_lr=dict(base_batch_size=16, enable=False)))
    fit_batch(cfg, 8)
    assert not warned
    fit_batch(cfg, 1)
    assert '16 images an update, and this run has 1 GPUs x 2 images = 2' in warned.pop()
    fit_batch(cfg, 1, scale=True)
    fit_batch(Config(dict(train_dataloader=dict(batch_size=2))), 3)
    assert cfg.auto_scale_lr.enable and not warned
    with pytest.raises(BatchError, match='--scale-to-gpus needs a config with a recipe'):
        fit_batch(Config(dict()), 3, scale=True)


# --- one place for the knobs ------------------------------------------------------------------


@pytest.mark.parametrize(('batch_size', 'accumulate'), [(32, 4), (16, 1), (128, 8)])
def test_knobs_of_a_copy_reach_everything(tmp_path, batch_size, accumulate):
    text = (CONFIGS / 'poa' / 'vits_folder.py').read_text()
    text = text.replace("'vits_in1k_1gpu.py'", repr(str(CONFIGS / 'poa' / 'vits_in1k_1gpu.py')))
    text = text.replace('batch_size = 64', f'batch_size = {batch_size}')
    text = text.replace('accumulate = 16', f'accumulate = {accumulate}')
    (tmp_path / 'mine.py').write_text(text)
    cfg = read_config(tmp_path / 'mine.py')
    assert cfg.train_dataloader.batch_size == batch_size
    assert cfg.optim_wrapper.accumulative_counts == accumulate
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(0.004 * (batch_size * accumulate / 1024) ** 0.5)


# --- lengths ----------------------------------------------------------------------------------


@pytest.mark.parametrize('path', PRETRAINING, ids=lambda path: path.stem)
def test_a_run_cut_short_by_hand_is_told_all_that_will_be_missing(path, warned):
    cfg = read_config(path, {'train_cfg.max_iters': 20})
    check_lengths(cfg)
    text = '\n'.join(warned)
    assert 'and the run has 20 iterations: there will be no masks and no patch loss' in text
    assert "the teacher's temperature will not reach its last value" in text
    never = 'the prototypes will never be trained' in text
    assert never == (cfg.custom_hooks[1].freeze_prototypes_iters >= 20)
    assert 'LinearLR of the learning rate) ends at' in text
    assert 'CosineAnnealingParamScheduler of weight_decay) ends at' in text


def test_epochs_below_the_ramp(warned):
    cfg = run(batch_size=64, images=6400, epochs=20, warmup_epochs=10, ramp_epochs=30, freeze_epochs=1)
    assert check_lengths(cfg) == warned
    assert len(warned) == 2
    assert warned[0].startswith('custom_hooks.1.patch_loss_start is 3,000, and the run has 2,000 iterations')
    assert 'teacher_temp_iters is 3,000' in warned[1]


@pytest.mark.parametrize(
    ('changes', 'expected'),
    [
        (dict(), None),
        (dict(max_iters=200), 'ends at 100, and the run has 200 iterations: the rest runs with its last value'),
        (dict(max_iters=50), 'ends at 100, and the run has 50 iterations: it is cut'),
        (dict(max_iters=10), 'begins at 10, and the run has 10 iterations: it has no effect'),
        (dict(val_begin=101), 'val_begin is 101, and the run ends at 100'),
    ],
)
def test_lengths_of_any_config(warned, changes, expected):
    cfg = dict(
        train_cfg=dict(max_iters=100) | changes,
        param_scheduler=[
            dict(type='LinearLR', by_epoch=False, end=10),
            dict(type='CosineAnnealingLR', by_epoch=False, begin=10, end=100),
        ],
    )
    check_lengths(cfg)
    assert (expected is None and not warned) or any(expected in text for text in warned)


def test_epochs_and_a_single_scheduler(warned):
    check_lengths(dict(train_cfg=dict(max_epochs=5), param_scheduler=dict(type='MultiStepLR', begin=8, end=9)))
    assert 'param_scheduler.0 (MultiStepLR of the learning rate) begins at 8, and the run has 5 epochs' in warned.pop()
    check_lengths(dict(train_cfg=None, param_scheduler=None, custom_hooks=None))
    assert not warned
