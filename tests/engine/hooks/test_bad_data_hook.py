import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from image_files import bad_files, encoded, photo
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from torch import distributed, multiprocessing

from poa_mm.engine import BadDataError, BadDataHook

GOOD = 171  # and nine bad ones: 5 %


@pytest.fixture
def config(run_config, tmp_path):
    folder = tmp_path / 'images'
    folder.mkdir()
    for i in range(GOOD):
        (folder / f'{i:03}.jpg').write_bytes(encoded(photo(seed=i)))
    for name, content in bad_files().items():
        (folder / name).write_bytes(content)
    pipeline = run_config.train_dataloader.dataset.pipeline
    run_config.train_dataloader.update(
        sampler=dict(type='ResumableSampler', shuffle=True),
        dataset=dict(
            type='CustomDataset',
            data_prefix=str(folder),
            with_label=False,
            pipeline=[dict(type='SafeLoadImageFromFile'), *pipeline],
        ),
    )
    run_config.train_cfg = dict(type='ResumableTrainLoop', max_iters=24)  # all 180 images and some again
    run_config.custom_hooks.append(dict(type='BadDataHook', max_share=0.2))
    return run_config


class Record(Hook):
    def __init__(self):
        self.seen = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.seen.append(([s.img_path for s in data_batch['data_samples']], [x.clone() for x in data_batch['inputs']]))

    def after_train(self, runner):
        self.count = runner.message_hub.get_scalar('train/bad_images').current()


@pytest.fixture
def train(config, build_runner):
    def run(work_dir=None):
        config.work_dir = str(work_dir or config.work_dir)
        record = Record()
        build_runner(config, [record]).train()
        return record, listed(config.work_dir)

    return run


def listed(work_dir):
    return [json.loads(line) for line in Path(work_dir, 'bad_images.jsonl').read_text().splitlines()]


def assert_same(first, second):
    assert [paths for paths, _ in first] == [paths for paths, _ in second]
    torch.testing.assert_close([views for _, views in first], [views for _, views in second], rtol=0, atol=0)


@pytest.mark.parametrize('workers', [0, pytest.param(2, marks=pytest.mark.slow)])
def test_counts_are_exact_and_substitutes_those_of_another_run(config, train, tmp_path, workers):
    record, entries = train()
    first = {entry['position']: Path(entry['path']).name for entry in reversed(entries) if entry['position'] < 180}
    assert sorted(first.values()) == sorted(bad_files())  # a pass reads each once, beside what substitutes meet
    assert record.count == len(entries)
    paths = [path for paths, _ in record.seen for path in paths]
    assert len(paths) == 192
    assert all(Path(path).name not in bad_files() for path in paths)
    assert [entry['position'] for entry in entries] == sorted(entry['position'] for entry in entries)
    config.train_dataloader.num_workers = workers
    again, entries_again = train(tmp_path / 'again')
    assert entries_again == entries
    assert_same(again.seen, record.seen)


def test_resumed_run_has_the_list_of_the_uninterrupted_one(config, train):
    config.default_hooks.checkpoint.interval = 12
    record, entries = train()  # which has listed more than there was at the checkpoint
    assert any(entry['position'] < 96 for entry in entries) and any(entry['position'] >= 96 for entry in entries)
    with Path(config.work_dir, 'bad_images.jsonl').open('a') as file:
        file.write('{"position": 3')  # killed in the middle of a line
    config.load_from = str(Path(config.work_dir, 'iter_12.pth'))
    config.resume = True
    again, entries_again = train()
    assert entries_again == entries
    assert again.count == record.count
    assert_same(again.seen, record.seen[12:])


def test_new_run_in_the_same_folder_has_a_new_list(config, train):
    config.train_cfg.max_iters = 8
    assert train()[1] == train()[1]


@pytest.mark.parametrize('min_images', [1, 100])
def test_too_many_stop_the_run_with_the_list_written(config, train, min_images):
    config.custom_hooks[-1].update(max_share=0.01, min_images=min_images)
    with pytest.raises(BadDataError, match=r'images .*cannot be used, more than max_share=0.01; see .*bad_images') as e:
        train()
    entries = listed(config.work_dir)
    count, _, images = str(e.value).split()[:3]
    assert int(count) == len(entries) > 0.01 * int(images)
    assert int(images) >= min_images
    assert entries[0].keys() == {'position', 'index', 'path', 'reason'}


def test_good_images_leave_no_list(config, train):
    for name in bad_files():
        Path(config.train_dataloader.dataset.data_prefix, name).unlink()
    config.train_cfg.max_iters = 2
    with pytest.raises(FileNotFoundError):
        train()
    assert not Path(config.work_dir, 'bad_images.jsonl').exists()


@pytest.mark.parametrize('options', [dict(max_share=-0.1), dict(max_share=2), dict(min_images=0)])
def test_limits_are_checked(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        BadDataHook(**options)


# --- over two processes ---


def hook_of_rank(rank, folder):
    """What rank ``rank`` of two, with 4 images each an iteration, knows of bad images that rank 1 alone has."""
    init = f'file://{folder}/rendezvous'
    distributed.init_process_group('gloo', init_method=init, rank=rank, world_size=2)
    runner = SimpleNamespace(
        iter=0,
        work_dir=folder,
        train_loop=SimpleNamespace(samples_before=lambda iteration: 8 * iteration),
        message_hub=MessageHub.get_instance('two_ranks'),
        logger=SimpleNamespace(warning=lambda text: None),
    )
    hook = BadDataHook(max_share=0.1, min_images=20)
    hook.before_train(runner)
    counts, error = [], None
    for runner.iter, bad in enumerate(([], [9], [21, 17])):
        bad = [dict(position=position, index=position, path='x.jpg', reason='empty') for position in bad]
        samples = [{'bad_images': bad if rank else []}, {}]
        try:
            hook.before_train_iter(runner, runner.iter, dict(data_samples=samples))
        except BadDataError as found:
            error = str(found)
        counts.append(int(runner.message_hub.get_scalar('train/bad_images').current()))
    torch.save((counts, error), f'{folder}/rank{rank}.pt')
    distributed.barrier()  # and no destroy_process_group: with gloo of torch 2.1 it may wait for ever


@pytest.mark.slow
def test_all_ranks_count_and_stop_together(tmp_path):
    multiprocessing.spawn(hook_of_rank, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f'rank{rank}.pt') for rank in range(2))
    assert first == second
    assert first[0] == [0, 1, 3]
    assert '3 of 27 images (11.1%)' in first[1]
    assert [entry['position'] for entry in listed(tmp_path)] == [9, 17, 21]
