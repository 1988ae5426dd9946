import json
import tarfile

import numpy as np
import pytest
from image_files import encoded, photo

from poa_mm.datasets.sources import FolderSource, TarSource
from poa_mm.datasets.write_shards import write_shards


@pytest.fixture
def images(tmp_path):
    """A folder with two classes and seven images of three formats."""
    for index in range(7):
        folder = tmp_path / 'images' / 'ab'[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        suffix, format = [('.jpg', 'JPEG'), ('.PNG', 'PNG'), ('.webp', 'WEBP')][index % 3]
        (folder / f'some.name {index}{suffix}').write_bytes(encoded(photo(seed=index), format))
    return tmp_path / 'images'


def folder(root, labels=True):
    return FolderSource(root, ['a', 'b'] if labels else None)


def shards(root):
    return TarSource(root, 'train-*.tar', ('.jpg', '.png', '.webp'), cache_dir=root.parent / 'cache')


@pytest.mark.parametrize('labels', [True, False])
def test_the_same_images_in_the_same_order(images, tmp_path, labels):
    source = folder(images, labels)
    done = []
    paths = write_shards(source, tmp_path / 'out', per_shard=3, progress=done.append)
    assert [path.name for path in paths] == [f'train-{shard:06d}.tar' for shard in range(3)]
    assert sum(done) == 7
    packed = shards(tmp_path / 'out')
    assert len(packed) == 7
    for index in range(7):
        assert packed.read(index) == source.read(index)
        assert packed.label(index) == source.label(index)
    assert packed.classes == source.classes
    with tarfile.open(paths[1]) as tar:
        names = [name for name in tar.getnames() if name.startswith('000000003')]
        assert names == ['000000003.jpg', '000000003.json'] + ['000000003.cls'] * labels
        assert json.load(tar.extractfile('000000003.json')) == dict(name=source.key(3))


def test_interrupted_it_goes_on(images, tmp_path):
    whole = [path.read_bytes() for path in write_shards(folder(images), tmp_path / 'whole', per_shard=3)]
    source = folder(images)

    class Interrupted(FolderSource):
        def read(self, index):
            if index == 4:
                raise KeyboardInterrupt
            return super().read(index)

    with pytest.raises(KeyboardInterrupt):
        write_shards(Interrupted(images, ['a', 'b']), tmp_path / 'out', per_shard=3)
    assert [path.name for path in sorted((tmp_path / 'out').glob('*train-*.tar*'))] == ['train-000000.tar']
    first = (tmp_path / 'out' / 'train-000000.tar').stat()
    paths = write_shards(source, tmp_path / 'out', per_shard=3)
    assert [path.read_bytes() for path in paths] == whole
    assert paths[0].stat().st_mtime_ns == first.st_mtime_ns


def test_shards_of_other_images_are_not_mixed(images, tmp_path):
    write_shards(folder(images), tmp_path / 'out', per_shard=3)
    with pytest.raises(ValueError, match=r'other per_shard: 7 images, 3 a shard; now 7 and 4'):
        write_shards(folder(images), tmp_path / 'out', per_shard=4)
    with pytest.raises(ValueError, match='other images'):
        write_shards(folder(images, labels=False), tmp_path / 'out', per_shard=3)
    (images / 'a' / 'new.jpg').write_bytes(encoded(photo()))
    with pytest.raises(ValueError, match=r'7 images, .*now 8'):
        write_shards(folder(images), tmp_path / 'out', per_shard=3)
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other' / 'train-000001.tar').write_bytes(b'')
    with pytest.raises(ValueError, match=r'train-000001\.tar of another origin'):
        write_shards(folder(images), tmp_path / 'other', per_shard=3)


def test_what_is_read_back_is_compared(images, tmp_path, monkeypatch):
    """A disk that loses bytes without a word: the shard does not get its name."""
    from poa_mm.datasets import write_shards as module

    add = module._add
    monkeypatch.setattr(
        module, '_add', lambda tar, name, content: add(tar, name, bytes(len(content)) if '2.png' in name else content)
    )
    with pytest.raises(OSError, match='not what is read back'):
        write_shards(folder(images), tmp_path / 'out')
    assert not list((tmp_path / 'out').glob('*.tar*'))
    assert not list((tmp_path / 'out').glob('.*'))


class Nameless(FolderSource):
    def key(self, index):
        return f'train/{index:09d}'

    def read(self, index):
        return encoded(photo(seed=index), 'PNG') if index else np.zeros((2, 2, 5), np.uint16)


def test_images_without_a_suffix(images, tmp_path, monkeypatch):
    source = Nameless(images)
    write_shards(source, tmp_path / 'out')
    with tarfile.open(tmp_path / 'out' / 'train-000000.tar') as tar:
        assert [name for name in tar.getnames() if not name.endswith('.json')][:2] == ['000000000.npy', '000000001.png']
    monkeypatch.setattr(Nameless, 'read', lambda self, index: b'no image')
    with pytest.raises(ValueError, match='000000000 is no image of a known kind'):
        write_shards(source, tmp_path / 'other')


@pytest.mark.parametrize('options', [dict(per_shard=0), dict(prefix='a/b'), dict(prefix=''), dict(prefix='.x')])
def test_wrong_options(images, tmp_path, options):
    with pytest.raises(ValueError, match='per_shard'):
        write_shards(folder(images), tmp_path / 'out', **options)
    assert not (tmp_path / 'out').exists()
