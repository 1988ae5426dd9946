from pathlib import Path

import torch
from torch.testing import assert_close

from poa_mm.checkpoint import load_teacher, read_checkpoint


def test_checkpoint_describes_itself(run_config, build_runner):
    runner = build_runner(run_config)
    runner.train()
    path = Path(run_config.work_dir, 'iter_4.pth')

    entry = read_checkpoint(path)['poa']
    assert entry['backbone']['widths'] == [16, 24, 32]
    assert entry['deck'] == {'seed': 0, 'dealt': 4}
    backbone, _ = load_teacher(path)
    images = torch.randn(2, 3, 8, 8)
    for subnet in backbone.space:
        assert_close(backbone(images, subnet), runner.model.extract_feat(images, subnet))


def test_deck_goes_on_after_resume(run_config, build_runner):
    run_config.train_cfg.max_iters = 6
    whole = build_runner(run_config)
    dealt = []
    deal = whole.model.deck.deal
    whole.model.deck.deal = lambda: dealt.append(deal()) or dealt[-1]
    whole.train()

    run_config.train_cfg.max_iters = 3
    run_config.work_dir += '_resumed'
    build_runner(run_config).train()
    run_config.train_cfg.max_iters = 6
    run_config.resume = True
    resumed = build_runner(run_config)
    again = []
    deal_again = resumed.model.deck.deal
    resumed.model.deck.deal = lambda: again.append(deal_again()) or again[-1]
    resumed.train()

    assert len(dealt) == 6
    assert again == dealt[3:]


def test_a_run_that_starts_from_weights_has_a_deck_of_its_own(run_config, build_runner):
    build_runner(run_config).train()
    run_config.load_from = str(Path(run_config.work_dir, 'iter_4.pth'))
    run_config.work_dir += '_second'
    run_config.randomness.seed = 3
    runner = build_runner(run_config)
    runner.train()
    assert runner.model.deck.state_dict() == {'seed': 3, 'dealt': 4}


def test_deck_follows_the_seed_of_the_run(run_config, build_runner):
    run_config.randomness.seed = 7
    runner = build_runner(run_config)
    runner.train()
    assert runner.model.deck.state_dict() == {'seed': 7, 'dealt': 4}


def test_without_elastic_student_there_is_no_deck(run_config, build_runner):
    run_config.model.update(weight_es1=0.0, weight_es2=0.0)
    build_runner(run_config).train()
    assert 'deck' not in read_checkpoint(Path(run_config.work_dir, 'iter_4.pth'))['poa']


def test_preprocessor_of_the_whole_config_is_described_too(run_config, build_runner):
    run_config.data_preprocessor = run_config.model.pop('data_preprocessor')
    build_runner(run_config).train()
    entry = read_checkpoint(Path(run_config.work_dir, 'iter_4.pth'))['poa']
    assert entry['data_preprocessor']['mean'] == [78.0] * 3
