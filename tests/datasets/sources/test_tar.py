import os
import pickle

import numpy as np
import pytest
from shard_files import write_shard

from poa_mm.datasets.sources import ShardError, TarSource
from poa_mm.datasets.sources import tar as tar_module

SUFFIXES = ('.jpg', '.png')


@pytest.fixture
def shards(tmp_path):
    """Three shards of 2, 3 and 1 images with classes."""
    for shard, numbers in enumerate([(0, 1), (2, 3, 4), (5,)]):
        files = []
        for number in numbers:
            files += [(f'{number:06d}.jpg', b'image %d' % number), (f'{number:06d}.cls', b'%d' % (number % 3))]
        write_shard(tmp_path / f'train-{shard}.tar', files)
    return tmp_path


def source(root, **options):
    return TarSource(root, **dict(dict(suffixes=SUFFIXES, cache_dir=root / 'cache'), **options))


def test_any_image_in_any_order(shards):
    images = source(shards)
    assert len(images) == 6
    for index in (5, 0, 3, 2, 1, 4, 5):
        assert images.read(index) == b'image %d' % index
        assert images.label(index) == index % 3
        assert images.name(index).endswith(f'.tar/{index:06d}.jpg')
    assert images.name(2) == str(shards / 'train-1.tar' / '000002.jpg')
    assert images.labelled
    assert images.classes is None
    for index in (6, -1):
        with pytest.raises(IndexError):
            images.read(index)


def test_classes_by_number_have_names_beside_them(shards):
    (shards / 'classes.txt').write_text('ant\nbee\ncat\n')
    assert source(shards).classes == ['ant', 'bee', 'cat']
    (shards / 'classes.txt').write_text('ant\nbee\n')
    with pytest.raises(ValueError, match=r'names 2 classes; the shards have class 2'):
        source(shards)


def test_classes_by_name(tmp_path):
    write_shard(
        tmp_path / 'a.tar', [('0.jpg', b''), ('0.cls', b'dog'), ('1.jpg', b''), ('1.cls', b'cat'), ('2.jpg', b'')]
    )
    images = source(tmp_path)
    assert images.classes == ['cat', 'dog']
    assert [images.label(index) for index in range(3)] == [1, 0, None]
    assert not images.labelled
    write_shard(tmp_path / 'b.tar', [('0.jpg', b''), ('0.cls', b'3')])
    with pytest.raises(ValueError, match=r"numbers \(3\) and names \('cat'\)"):
        source(tmp_path)


def test_the_index_is_built_once(shards, monkeypatch):
    first = source(shards)
    assert isinstance(first.index['offsets'], np.memmap)
    monkeypatch.setattr(tar_module, '_build', None)
    again = source(shards)
    assert (again.digest, len(again)) == (first.digest, 6)


def test_a_changed_shard_is_read_again(shards):
    assert len(source(shards)) == 6
    write_shard(shards / 'train-1.tar', [('9.jpg', b'other')])
    images = source(shards)
    assert [images.read(index) for index in range(4)] == [b'image 0', b'image 1', b'other', b'image 5']


def test_a_damaged_index_is_built_again(shards):
    images = source(shards)
    content = images.index.path.read_bytes()
    for damaged in (b'', content[:-1], b'x' + content[1:], content[:20] + b'x' * (len(content) - 20)):
        images.index.path.write_bytes(damaged)
        assert source(shards).read(5) == b'image 5'


def test_nothing_is_left_of_a_build_that_fails(shards):
    (shards / 'train-3.tar').write_bytes(b'')
    with pytest.raises(ShardError, match=r'1 of 4 shards cannot be used: .*train-3\.tar is empty'):
        source(shards)
    assert not list((shards / 'cache').glob('*.index'))
    with pytest.raises(ValueError, match='no images'):
        source(shards, shards='train-0.tar', suffixes=('.webp',))


def test_a_cache_that_cannot_be_written_costs_only_time(shards, caplog):
    (shards / 'cache').write_text('a file')
    images = source(shards)
    assert images.read(4) == b'image 4'
    assert images.index.path is None


def test_pickled_it_is_a_path(shards):
    images = source(shards)
    images.read(0)
    assert len(pickle.dumps(images)) < 3000
    assert pickle.loads(pickle.dumps(images)).read(3) == b'image 3'


def test_descriptors_are_few(shards, monkeypatch):
    monkeypatch.setattr(tar_module, 'MAX_OPEN', 2)
    images = source(shards)
    before = len(os.listdir('/proc/self/fd'))
    for index in (0, 5, 2, 0, 5, 2):
        assert images.read(index) == b'image %d' % index
    assert len(os.listdir('/proc/self/fd')) <= before + 2
    del images
    assert len(os.listdir('/proc/self/fd')) < before


def test_a_shard_that_shrinks_under_the_run(shards):
    images = source(shards)
    os.truncate(shards / 'train-1.tar', 1000)
    with pytest.raises(OSError, match=r'000004\.jpg'):
        images.read(4)
