import shutil
from pathlib import Path

import pytest
import torch
from image_files import encoded, photo
from mmengine.config import Config
from test_loops import Record, assert_same

from poa_mm.checkpoint import CheckpointError
from poa_mm.datasets.sources import FolderSource
from poa_mm.datasets.write_shards import write_shards
from poa_mm.engine.data_config import count_images, place_indices, use_data
from poa_mm.recipes import schedule

CONFIG = Path(__file__).parents[2] / 'configs' / 'poa' / 'vits_folder.py'


@pytest.fixture
def images(tmp_path):
    """A folder of 40 images."""
    folder = tmp_path / 'images'
    folder.mkdir()
    for index in range(40):
        (folder / f'{index:02d}.png').write_bytes(encoded(photo((16, 12), seed=index), 'PNG'))
    return folder


@pytest.fixture
def shards(images, tmp_path):
    """The same as three shards."""
    write_shards(FolderSource(images), tmp_path / 'shards', per_shard=15)
    return tmp_path / 'shards'


# --- lengths from the data -------------------------------------------------------------------
def test_epochs_become_iterations_of_the_images_that_are_there(images, tmp_path):
    cfg = Config.fromfile(CONFIG)
    cfg.recipe.update(batch_size=4, accumulate=2)
    cfg.optim_wrapper, cfg.param_scheduler, cfg.custom_hooks, cfg.train_cfg = schedule(**cfg.recipe)
    cfg.train_dataloader.batch_size = 4
    use_data(cfg, str(images))
    count_images(cfg)
    assert cfg.recipe.images == 40
    assert cfg.train_cfg == dict(max_iters=300 * 10)
    warmup, cosine, decay = cfg.param_scheduler
    assert (warmup.end, cosine.begin, cosine.end, decay.end) == (100, 100, 3000, 3000)
    hook = cfg.custom_hooks[1]
    assert (hook.teacher_temp_iters, hook.patch_loss_start, hook.freeze_prototypes_iters) == (300, 300, 10)
    dataset = cfg.train_dataloader.dataset
    assert (dataset.type, dataset.data_prefix, dataset.with_label) == ('ImageFolder', str(images), False)
    assert dataset.pipeline[0].type == 'SafeLoadImageFromFile'
    assert Config.fromstring(cfg.pretty_text, '.py').recipe.images == 40  # what checkpoints and logs hold


def test_recipes_with_a_number_count_nothing(images):
    cfg = Config.fromfile(CONFIG.with_name('vitl_in1k.py'))
    count_images(cfg)
    assert cfg.train_cfg.max_iters == 276_800
    use_data(cfg, str(images))
    assert cfg.recipe.images == 'data'
    count_images(cfg)
    assert (cfg.recipe.images, cfg.train_cfg.max_iters) == (40, 346)  # never less than one update an epoch


def test_what_is_not_counted_does_not_run(run_config, build_runner):
    run_config.train_cfg = dict(type='ResumableTrainLoop', **schedule(batch_size=2, images='data', epochs=3).train_cfg)
    run_config.train_dataloader.sampler.type = 'ResumableSampler'
    with pytest.raises(ValueError, match=r"images='data'.*count_images"):
        build_runner(run_config).train()


@pytest.mark.parametrize('images', ['all', 0, -1, 2.5])
def test_other_numbers_of_images(images):
    with pytest.raises(ValueError, match=r'images'):
        schedule(batch_size=2, images=images, epochs=3)


def test_data_that_cannot_be_used(images):
    cfg = Config.fromfile(CONFIG)
    with pytest.raises(FileNotFoundError, match='nowhere'):
        use_data(cfg, str(images.parent / 'nowhere'))
    with pytest.raises(ValueError, match='--data'):
        use_data(Config(dict(train_dataloader=dict())), str(images))
    (images.parent / 'empty').mkdir()
    use_data(cfg, str(images.parent / 'empty'))
    with pytest.raises(ValueError, match='no images'):
        count_images(cfg)


def test_indices_lie_beside_the_work_dir(images, tmp_path):
    cfg = Config.fromfile(CONFIG)
    cfg.work_dir = str(tmp_path / 'runs' / 'first')
    cfg.knn.query.dataset.cache_dir = 'elsewhere'
    place_indices(cfg)
    assert cfg.train_dataloader.dataset.cache_dir == str(tmp_path / 'runs' / 'image_index')
    assert cfg.knn.bank.dataset.cache_dir == cfg.train_dataloader.dataset.cache_dir
    assert cfg.knn.query.dataset.cache_dir == 'elsewhere'
    place_indices(cfg)  # of data sets that have none
    assert 'cache_dir' not in Config.fromfile(CONFIG.with_name('vitt_digits.py')).train_dataloader.dataset


# --- runs ------------------------------------------------------------------------------------
@pytest.fixture
def train(run_config, build_runner, tmp_path):
    """Trains five iterations on data of any kind, or goes on after one of them; records what it saw."""
    run_config.train_cfg = dict(type='ResumableTrainLoop', max_iters=5)
    run_config.train_dataloader.sampler.type = 'ResumableSampler'
    run_config.default_hooks.checkpoint.interval = 1
    pipeline = run_config.train_dataloader.dataset.pipeline

    def run(data, name, resume_from=None, **loop):
        run_config.train_dataloader.dataset = dict(pipeline=[dict(type='SafeLoadImageFromFile'), *pipeline])
        use_data(run_config, str(data))
        run_config.train_dataloader.dataset.pop('with_label')
        run_config.train_dataloader.dataset.update(cache_dir=str(tmp_path / 'index'), with_label=False)
        run_config.train_cfg.update(loop)
        run_config.work_dir = str(tmp_path / name)
        run_config.resume = resume_from is not None
        run_config.load_from = None if resume_from is None else str(tmp_path / resume_from)
        record = Record()
        runner = build_runner(run_config, [record])
        if run_config.resume:
            torch.manual_seed(123)  # another past
        runner.train()
        return record.seen, {key: value.clone() for key, value in runner.model.state_dict().items()}

    return run


def test_resumed_on_shards_is_as_uninterrupted_and_as_on_the_folder(train, images, shards):
    """Six batches of 8 are more than one pass over 40 images: the second one starts in between."""
    folder = train(images, 'folder', max_iters=6)
    whole = train(shards, 'whole')
    assert len(whole[0]) == 6
    assert_same(whole, folder)
    resumed = train(shards, 'resumed', 'whole/iter_3.pth')
    assert_same(resumed[0], whole[0][3:])
    assert_same(resumed[1], whole[1])


def test_data_that_has_grown(train, images, tmp_path):
    train(images, 'first')
    same = tmp_path / 'moved'
    shutil.copytree(images, same)
    train(same, 'second', 'first/iter_3.pth')
    (same / 'new.png').write_bytes(encoded(photo((16, 12), seed=99), 'PNG'))
    with pytest.raises(CheckpointError, match=r'40 images, the data has 41 now; --allow-other-data'):
        train(same, 'third', 'first/iter_3.pth')
    seen, _ = train(same, 'fourth', 'first/iter_3.pth', allow_other_data=True)
    assert len(seen) == 2
    (same / '00.png').unlink()
    with pytest.raises(CheckpointError, match='40 images of other names'):
        train(same, 'fifth', 'first/iter_3.pth', allow_other_data=False)
