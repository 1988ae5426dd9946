import logging
import multiprocessing
import os
import pickle
import random

import numpy as np
import pytest
from mmpretrain.datasets import CustomDataset

from poa_mm.datasets import ImageFolder
from poa_mm.datasets.sources import FolderSource
from poa_mm.datasets.sources import folder as folder_module


@pytest.fixture
def keep_all(monkeypatch):
    """Even short lists have an index file."""
    monkeypatch.setattr(folder_module, 'KEEP_ABOVE', 0)


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())


def source(root, **options):
    return FolderSource(root, cache_dir=root.parent / 'cache', **options)


@pytest.fixture
def root(tmp_path):
    """Names whose order depends on how one sorts: a folder beside files with its name, capitals, other alphabets."""
    touch(
        tmp_path / 'images',
        *('a/x.jpg', 'a-b/x.jpg', 'a.jpg', 'a0.jpg', 'A/z.png', 'a/0/1.jpg', 'a/0.jpg', 'a b/1.jpg', 'ä/é.jpg'),
        *('a/10.jpg', 'a/9.jpg', 'zebra/😀.jpg', 'zebra/字.jpg', 'ZEBRA/1.PNG', 'a/x.tif', 'deep/1/2/3/4/5.bmp'),
    )
    return tmp_path / 'images'


@pytest.mark.parametrize('with_label', [True, False])
@pytest.mark.parametrize('seed', range(3))
def test_the_order_is_that_of_mmpretrain(tmp_path, keep_all, with_label, seed):
    """Bit for bit: a run that has begun on a list of mmpretrain's goes on with the same images."""
    rng = random.Random(seed)
    letters = 'aAbB01 .-_/é~字😀'
    names = {''.join(rng.choices(letters, k=rng.randint(1, 9))) for _ in range(300)}
    names = {'/'.join(part.strip('.') for part in name.split('/') if part.strip('.')) for name in names} - {''}
    for name in sorted(names):
        path = tmp_path / 'images' / 'c' / f'{name}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    touch(tmp_path / 'images', 'c-d/1.jpg', 'c/2.jpg', 'C/3.jpg')
    theirs = CustomDataset(data_prefix=str(tmp_path / 'images'), with_label=with_label)
    for _ in range(2):  # built, and from the file
        ours = ImageFolder(data_prefix=str(tmp_path / 'images'), with_label=with_label, cache_dir=tmp_path / 'cache')
        assert len(ours) == len(theirs) > 250
        assert [ours[index] for index in range(len(ours))] == [theirs[index] for index in range(len(theirs))]
        assert ours.metainfo == theirs.metainfo
    assert len(list((tmp_path / 'cache').glob('*.index'))) == 1


def test_names_that_are_no_text(tmp_path, keep_all):
    raw = [b'\xff.jpg', b'\x80\xff.jpg', 'é.jpg'.encode(), '\U0010ffff.jpg'.encode(), b'a\nb.jpg']
    root = os.fsencode(tmp_path / 'images')
    os.mkdir(root)
    for name in raw:
        with open(os.path.join(root, name), 'wb') as file:
            file.write(name)
    images = source(tmp_path / 'images')
    assert sorted(images.read(index) for index in range(5)) == sorted(raw)
    theirs = CustomDataset(data_prefix=str(tmp_path / 'images'), with_label=False, serialize_data=False)
    assert [images.name(i) for i in range(5)] == [theirs.get_data_info(i)['img_path'] for i in range(5)]


@pytest.mark.parametrize(
    'change',
    [
        lambda root: touch(root, 'deep/1/2/new.jpg'),
        lambda root: touch(root, 'new/1.jpg'),
        lambda root: (root / 'a' / '0.jpg').unlink(),
        lambda root: (root / 'a.jpg').rename(root / 'b.jpg'),
        lambda root: (root / 'zebra').rename(root / 'lion'),
    ],
)
def test_a_changed_folder_is_listed_again(root, keep_all, change):
    before = source(root)
    assert isinstance(before.index['times'], np.memmap)
    change(root)
    after = source(root)
    expected = sorted(str(path.relative_to(root)) for path in root.rglob('*') if path.is_file())
    assert [after.key(index) for index in range(len(after))] == expected
    assert after.digest != before.digest


def test_an_unchanged_folder_is_not_listed_again(root, keep_all, monkeypatch):
    first = source(root)
    monkeypatch.setattr(FolderSource, '_build', None)
    again = source(root)
    assert [again.key(index) for index in range(len(again))] == [first.key(index) for index in range(len(first))]
    assert (again.digest, again.counts, again.left_out) == (first.digest, first.counts, first.left_out)


def test_other_rules_have_an_index_of_their_own(root, keep_all):
    assert len(source(root)) > len(source(root, suffixes=('.png',))) == 2
    labelled = source(root, classes=['ä', 'a', 'none'])
    assert [labelled.label(index) for index in range(len(labelled))] == [1] * 6 + [0]
    assert labelled.empty == ['none']
    assert len(list((root.parent / 'cache').glob('*.index'))) == 3


def test_short_lists_leave_no_file(root):
    images = source(root)
    assert not (root.parent / 'cache').exists()
    assert pickle.loads(pickle.dumps(images)).read(0) == images.key(0).encode()


def _open(root, queue):
    queue.put(len(source(root)))


def test_of_many_processes_one_builds(root, keep_all, monkeypatch):
    built = multiprocessing.get_context('fork').Value('i', 0)
    build = FolderSource._build

    def counted(self, suffixes, stop_after=None):
        if stop_after is None:
            with built.get_lock():
                built.value += 1
        return build(self, suffixes, stop_after)

    monkeypatch.setattr(FolderSource, '_build', counted)
    context = multiprocessing.get_context('fork')
    queue = context.Queue()
    processes = [context.Process(target=_open, args=(root, queue)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [queue.get(timeout=60) for _ in processes] == [16] * 4
    for process in processes:
        process.join()
    assert built.value == 1


def test_no_images_leave_no_index(tmp_path, keep_all):
    touch(tmp_path / 'images', 'notes.txt')
    with pytest.raises(ValueError, match=r'no images in .*1 file left out'):
        source(tmp_path / 'images')
    assert not list(tmp_path.glob('cache/*.index'))
    with pytest.raises(OSError, match='nowhere'):
        source(tmp_path / 'nowhere')


def test_a_disk_that_is_full(root, keep_all, monkeypatch, caplog):
    from poa_mm.datasets.sources import index_file

    def full(path, index):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(index_file, 'write_index', full)
    with caplog.at_level(logging.WARNING):
        images = source(root)
    assert images.read(3) == images.key(3).encode()
    assert not list((root.parent / 'cache').glob('*.index'))
