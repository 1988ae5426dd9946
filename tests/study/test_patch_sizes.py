import json

import pytest
import torch

from poa_mm.elastic import Subnet
from poa_mm.study.patch_sizes import CONFIG, Trained, as_markdown, compare_patch_sizes, named
from poa_mm.study.pretraining import alone
from poa_mm.study.rows import CONFIGS

OPTIONS = {
    'recipe.max_iters': 2,
    'recipe.warmup_iters': 1,
    'recipe.ramp_iters': 1,
    'recipe.freeze_iters': 1,
    'recipe.batch_size': 16,
    'model.backbone.widths': [48, 96],
    'model.backbone.depths': [3, 6],
    'model.backbone.layer_scale_init_value': 1.0,
}


def run(sizes, seed, **knn):
    by_size = {(s.width, s.depth, s.patch): value for s, value in ((Subnet.parse(n), v) for n, v in knn.items())}
    return Trained(sizes, seed, by_size, 120.0 + seed, 500)


def test_table():
    both = {'48x2p4': 0.5, '48x2p7': 0.6, '96x4p4': 0.7, '96x4p7': 0.8}
    runs = [run('all', 0, **both), run('all', 60, **{name: value + 0.02 for name, value in both.items()})]
    runs += [run('4', 0, **{'48x2p4': 0.4, '96x4p4': 0.41}), run('7', 0, **{'48x2p7': 0.3, '96x4p7': 0.31})]
    lines = [[cell.strip() for cell in line.strip('|').split('|')] for line in as_markdown(runs).splitlines()]
    assert lines[0] == [
        'k-NN (%)',
        *('one for all, patch 4', 'one for each, patch 4', 'one for all, patch 7', 'one for each, patch 7'),
    ]
    assert lines[2] == ['48x2', '51.0 ± 1.4', '40.0', '61.0 ± 1.4', '30.0']
    assert lines[4] == ['mean', '61.0 ± 1.4', '40.5', '71.0 ± 1.4', '30.5']
    assert lines[-1] == ['Processor minutes of a run: all: 2.5, 4: 2.0, 7: 2.0.']


def test_the_config_of_fashion_mnist_is_one_of_several_patch_sizes(monkeypatch):
    from mmengine.config import Config
    from mmengine.registry import MODELS

    monkeypatch.setenv('POA_FMNIST', 'nowhere')
    cfg = Config.fromfile(CONFIG)
    backbone = MODELS.build(dict(cfg.model.backbone))
    assert backbone.space.patch_sizes == (4, 7, 14) and len(backbone.space) == 12
    assert named(backbone, '48x2') == Subnet(48, 2, 7) and named(backbone, '96x4p14') == Subnet(96, 4, 14)
    grid = cfg.train_dataloader.dataset.pipeline[1].grid
    assert backbone.mask_grid((28, 28)) == (grid, grid)
    by_itself = MODELS.build(alone(cfg.model.backbone, Subnet(48, 2, 14)))
    assert list(by_itself.space) == [Subnet(48, 2)] and by_itself.patch_size == (14, 14)


@pytest.mark.slow
def test_every_size_is_trained_with_all_and_alone(tmp_path):
    """On digits, a few iterations each; a second time nothing is trained."""
    config = tmp_path / 'digits.py'
    config.write_text(
        f'_base_ = {str(CONFIGS / "vitt_digits.py")!r}\n'
        'model = dict(backbone=dict(patch_sizes=[2, 4]))\n'
        "crop = dict(type='RandomResizedCrop', scale=8)\n"
        'train_dataloader = dict(dataset=dict(pipeline=[\n'
        "    dict(type='MultiView', num_views=[2, 2], transforms=[[crop], [crop]]),\n"
        "    dict(type='BlockMask', grid=2, prob=1.0, ratio=(0.3, 0.9), min_patches=1),\n"
        "    dict(type='PackInputs')]))\n"
    )
    runs = compare_patch_sizes(tmp_path / 'work', [3], config, OPTIONS, progress=False)
    assert [run.sizes for run in runs] == ['all', '2', '4']
    sizes = {(width, depth) for width in (48, 96) for depth in (3, 6)}
    assert [set(run.knn) for run in runs] == [
        {(*size, patch) for size in sizes for patch in patches} for patches in ((2, 4), (2,), (4,))
    ]
    assert all(run.iterations == 2 and run.seconds > 0 for run in runs)
    before = {path: path.stat().st_mtime for path in (tmp_path / 'work').rglob('*')}
    assert compare_patch_sizes(tmp_path / 'work', [3], config, OPTIONS, progress=False) == runs
    assert {path: path.stat().st_mtime for path in (tmp_path / 'work').rglob('*')} == before
    assert 'one for each, patch 2' in as_markdown(runs)
    checkpoint = torch.load(tmp_path / 'work' / 'all-seed3' / 'iter_2.pth', weights_only=False)
    assert json.loads(json.dumps(checkpoint['poa']))['backbone']['patch_sizes'] == [2, 4]


def test_a_config_of_one_patch_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r'expected model\.backbone\.patch_sizes, two or more; found'):
        compare_patch_sizes(tmp_path, [0], CONFIGS / 'vitt_digits.py')
    assert not list(tmp_path.iterdir())
