import multiprocessing
import pickle

import numpy as np
import pytest
import torch
from image_files import encoded, photo
from mmengine.registry import DATASETS
from shard_files import write_shard

from poa_mm.datasets import BadImageError, HuggingFaceImages, ImageFolder
from poa_mm.datasets.sources import FolderSource, guess_source
from poa_mm.datasets.write_shards import write_shards

LOAD = [dict(type='SafeLoadImageFromFile')]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Twelve images of three classes as a folder and as shards of five."""
    root = tmp_path_factory.mktemp('data')
    for index in range(12):
        folder = root / 'images' / f'class{index % 3}'
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f'{index:02d}.jpg').write_bytes(encoded(photo(seed=index)))
    write_shards(FolderSource(root / 'images', ['class0', 'class1', 'class2']), root / 'shards', per_shard=5)
    return root


def tar_images(data, **options):
    settings = dict(data_root=str(data / 'shards'), shards='train-{000000..000002}.tar', cache_dir=data / 'cache')
    return DATASETS.build(dict(dict(type='TarImages', pipeline=LOAD, **settings), **options))


def test_shards_give_what_the_folder_gives(data):
    folder = ImageFolder(data_prefix=str(data / 'images'), pipeline=LOAD)
    shards = tar_images(data)
    assert len(shards) == len(folder) == 12
    assert shards.metainfo == folder.metainfo == dict(classes=('class0', 'class1', 'class2'))
    for index in range(12):
        ours, theirs = shards[index], folder[index]
        assert ours.pop('img_path') != theirs.pop('img_path')
        np.testing.assert_array_equal(ours.pop('img'), theirs.pop('img'))
        assert ours == theirs
    assert list(shards.get_gt_labels()) == list(folder.get_gt_labels()) == [0] * 4 + [1] * 4 + [2] * 4
    assert shards.get_cat_ids(5) == [1]


def test_labels_can_be_left_out(data):
    assert 'gt_label' not in tar_images(data, with_label=False)[0]
    assert 'gt_label' in tar_images(data, with_label=True)[0]
    write_shard(data / 'bare.tar', [('0.jpg', encoded(photo()))])
    bare = dict(data_root=str(data), shards='bare.tar')
    assert 'gt_label' not in tar_images(data, **bare)[0]
    with pytest.raises(ValueError, match=r'bare\.tar/0\.jpg has no label'):
        tar_images(data, **bare, with_label=True)


def test_classes_that_are_given_must_be_the_same(data):
    assert tar_images(data, classes=['class0', 'class1', 'class2']).CLASSES == ('class0', 'class1', 'class2')
    with pytest.raises(ValueError, match=r'\(class1, class0, class2\) are not .* \(class0, class1, class2\)'):
        tar_images(data, classes=['class1', 'class0', 'class2'])


def test_a_pipeline_that_opens_files_is_refused(data):
    with pytest.raises(ValueError, match=r"'SafeLoadImageFromFile'.* LoadImageFromFile does not"):
        tar_images(data, pipeline=[dict(type='LoadImageFromFile')])
    assert ImageFolder(data_prefix=str(data / 'images'), pipeline=[dict(type='LoadImageFromFile')])[0]['img'].ndim == 3


@pytest.mark.parametrize('make', [tar_images, lambda data, **o: ImageFolder(data_prefix=str(data / 'images'), **o)])
def test_some_of_the_images(data, make):
    every = make(data, pipeline=[])
    paths = [every[index]['img_path'] for index in range(12)]

    def of(dataset):
        return [dataset[index]['img_path'] for index in range(len(dataset))]

    assert of(make(data, pipeline=[], indices=3)) == paths[:3]
    assert of(make(data, pipeline=[], indices=[7, 2])) == [paths[7], paths[2]]
    part = every.get_subset(-4)
    assert of(part) == paths[-4:]
    assert of(part.get_subset([1])) == [paths[9]]
    assert of(every) == paths
    assert every[-1]['img_path'] == paths[11]
    assert every[-1]['sample_idx'] == 11
    for index in (12, -13):
        with pytest.raises(IndexError):
            every[index]


def test_a_bad_image_is_named(data):
    write_shard(data / 'bad.tar', [('0.jpg', b'no image'), ('1.jpg', encoded(photo()))])
    dataset = tar_images(data, data_root=str(data), shards='bad.tar')
    with pytest.raises(BadImageError, match=r'bad\.tar/0\.jpg'):
        dataset[0]
    assert dataset[1]['img'].shape == (40, 48, 3)


def test_content_does_not_travel_on(data):
    assert 'img_bytes' not in tar_images(data)[0]


def _first(dataset, queue):
    queue.put(dataset[7]['img'].sum())


@pytest.mark.parametrize('method', ['fork', 'spawn'])
def test_workers_read_the_same(data, method):
    dataset = tar_images(data)
    expected = dataset[7]['img'].sum()
    if method == 'spawn':  # pickles the data set; the process itself would take seconds to import
        assert pickle.loads(pickle.dumps(dataset))[7]['img'].sum() == expected
        assert len(pickle.dumps(dataset)) < 10_000
        return
    queue = multiprocessing.get_context(method).Queue()
    workers = [multiprocessing.get_context(method).Process(target=_first, args=(dataset, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [queue.get(timeout=60) for _ in workers] == [expected] * 2
    for worker in workers:
        worker.join()


def test_workers_of_a_loader_can_open_it_late(data):
    """Processes of a loader must not have children of their own."""
    dataset = tar_images(data, lazy_init=True, cache_dir=data / 'late', pipeline=[])
    loader = torch.utils.data.DataLoader(dataset, num_workers=1, batch_size=None, sampler=[0, 11])
    assert [item['sample_idx'] for item in loader] == [0, 11]


# --- Hugging Face ----------------------------------------------------------------------------
@pytest.fixture(scope='module')
def tables(tmp_path_factory):
    """Six images as Arrow, as one of two splits, as Parquet and as a folder."""
    # A module of it: without it, the folder of these tests would be imported under its name.
    pytest.importorskip('datasets.arrow_dataset', reason="pip install 'poa_mm[datasets]'")
    import datasets

    datasets.disable_progress_bars()
    root = tmp_path_factory.mktemp('tables')
    features = datasets.Features(dict(image=datasets.Image(), label=datasets.ClassLabel(names=['ant', 'bee'])))
    images = [dict(bytes=encoded(photo(seed=index)), path=None) for index in range(6)]
    table = datasets.Dataset.from_dict(dict(image=images, label=[0, 1, 0, 1, 1, 0]), features=features)
    table.save_to_disk(root / 'arrow')
    datasets.DatasetDict(train=table, val=table.select([5, 1])).save_to_disk(root / 'splits')
    (root / 'parquet').mkdir()
    table.to_parquet(root / 'parquet' / 'train-00000.parquet')
    for index in range(6):
        (root / 'folder' / 'ab'[index % 2]).mkdir(parents=True, exist_ok=True)
        (root / 'folder' / 'ab'[index % 2] / f'{index}.jpg').write_bytes(images[index]['bytes'])
    return root


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    config = pytest.importorskip('datasets.config', reason="pip install 'poa_mm[datasets]'")
    monkeypatch.setattr(config, 'HF_DATASETS_CACHE', tmp_path / 'hf')


@pytest.mark.parametrize('path', ['arrow', 'splits', 'parquet', 'parquet/train-00000.parquet'])
def test_tables(tables, no_hub, path):
    dataset = DATASETS.build(dict(type='HuggingFaceImages', data_root=str(tables / path), pipeline=LOAD))
    assert len(dataset) == 6
    assert dataset.metainfo['classes'] == ('ant', 'bee')
    assert [dataset.get_data_info(index)['gt_label'] for index in range(6)] == [0, 1, 0, 1, 1, 0]
    for index in (5, 0, 3):
        folder = ImageFolder(data_prefix=str(tables / 'folder' / 'ab'[index % 2]), with_label=False, pipeline=LOAD)
        np.testing.assert_array_equal(dataset[index]['img'], folder[index // 2]['img'])
    assert pickle.loads(pickle.dumps(dataset))[4]['img'].shape == (40, 48, 3)


def test_a_folder_through_datasets(tables, no_hub):
    dataset = HuggingFaceImages(str(tables / 'folder'), pipeline=LOAD)
    assert (len(dataset), dataset.CLASSES, dataset[0]['img'].shape) == (6, ('a', 'b'), (40, 48, 3))


def test_splits(tables):
    assert len(HuggingFaceImages(str(tables / 'splits'), split='val')) == 2
    with pytest.raises(ValueError, match=r"no split 'test', but 'train', 'val'"):
        HuggingFaceImages(str(tables / 'splits'), split='test')


@pytest.mark.parametrize(
    'options, words',
    [
        (dict(image_key='picture'), r"image_key='picture' is not one of the columns 'image', 'label'"),
        (dict(label_key='image'), r"label_key='image' holds .*, not numbers"),
        (dict(data_root='user/name'), r'user/name is not there .*downloads nothing'),
        (dict(data_root=__file__), r'neither a folder nor'),
    ],
)
def test_wrong_tables(tables, options, words):
    with pytest.raises((ValueError, OSError), match=words):
        HuggingFaceImages(**dict(dict(data_root=str(tables / 'arrow')), **options))


def test_without_datasets_the_command_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'datasets', None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'poa_mm\[datasets\]'"):
        HuggingFaceImages(str(tmp_path))


# --- what a user types -----------------------------------------------------------------------
def test_guesses(data, tables, no_hub, tmp_path):
    kinds = {
        data / 'images': 'FolderSource',
        data / 'shards': 'TarSource',
        data / 'shards' / 'train-000001.tar': 'TarSource',
        data / 'shards' / 'train-{000000..000002}.tar': 'TarSource',
        tables / 'arrow': 'ArrowSource',
        tables / 'splits': 'ArrowSource',
        tables / 'parquet': 'ArrowSource',
        tables / 'parquet' / 'train-00000.parquet': 'ArrowSource',
    }
    for path, kind in kinds.items():
        assert type(guess_source(str(path), cache_dir=tmp_path)).__name__ == kind
    assert guess_source(str(data / 'images'), labels=True).classes == ['class0', 'class1', 'class2']
    (tmp_path / 'a.tar').touch()
    (tmp_path / 'a.jpg').touch()
    with pytest.raises(ValueError, match='tar files and images'):
        guess_source(str(tmp_path))
    with pytest.raises(FileNotFoundError, match='nowhere'):
        guess_source(str(tmp_path / 'nowhere'))
