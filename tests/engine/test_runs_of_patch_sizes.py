"""Runs whose elastic student has patches of several sizes."""

from pathlib import Path

import pytest
from mmengine.config import Config
from torch.testing import assert_close

from poa_mm.checkpoint import CheckpointError, load_teacher, read_checkpoint
from poa_mm.engine.resume import check_resumable, load_from_poa, set_start


@pytest.fixture
def run_config(run_config):
    run_config.model.backbone.patch_sizes = [2, 4, 8]
    run_config.default_hooks.checkpoint.update(type='POACheckpointHook', interval=2, max_keep_ckpts=9)
    run_config.train_cfg.update(type='ResumableTrainLoop', max_iters=6)
    run_config.train_dataloader.sampler.type = 'ResumableSampler'
    return run_config


def test_a_resumed_run_goes_on_with_the_same_numbers(run_config, build_runner):
    whole = build_runner(run_config)
    whole.train()
    dealt = {whole.model.deck._card(number).patch for number in range(6)}
    assert len(dealt) > 1, 'several sizes were trained'
    cfg = Config(run_config.to_dict() | dict(work_dir=f'{run_config.work_dir}_again'))
    set_start(cfg, str(Path(run_config.work_dir, 'iter_2.pth')))
    again = build_runner(cfg)
    again.train()
    assert again.iter == 6 and again.model.deck.state_dict() == whole.model.deck.state_dict()
    assert_close(again.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
    backbone, description = load_teacher(Path(cfg.work_dir, 'iter_6.pth'))
    assert backbone.space.patch_sizes == (2, 4, 8) and description['backbone']['patch_sizes'] == [2, 4, 8]


@pytest.mark.parametrize(('before', 'after'), [([2, 4, 8], None), (None, [2, 4, 8]), ([2, 4, 8], [4, 8])])
def test_another_choice_of_sizes_is_refused_but_may_start_from_the_weights(run_config, build_runner, before, after):
    run_config.train_cfg.max_iters = 2
    run_config.model.backbone.patch_sizes = before
    build_runner(run_config).train()
    path = str(Path(run_config.work_dir, 'iter_2.pth'))
    run_config.model.backbone.patch_sizes = after
    model = build_runner(run_config).model
    with pytest.raises(
        CheckpointError, match=r'its space is widths 16, 24, 32; depths 2, 3.*, in the checkpoint widths'
    ):
        check_resumable(read_checkpoint(path), model, path)
    cfg = Config(run_config.to_dict() | dict(work_dir=f'{run_config.work_dir}_new', load_from=path))
    set_start(cfg)
    load_from_poa(cfg.load_from)
    runner = build_runner(cfg)
    runner.train()
    assert runner.iter == 2


def test_crops_that_do_not_fit_stop_the_first_step(run_config, build_runner):
    run_config.train_dataloader.dataset.pipeline[0].transforms[1][0]['scale'] = 6
    with pytest.raises(ValueError, match=r'crops of 6 x 6 pixels and patches of 4 x 4 do not fit: with patch_sizes'):
        build_runner(run_config).train()
    assert not list(Path(run_config.work_dir).glob('*.pth'))
