import gzip
import tarfile

import pytest
from shard_files import write_shard

from poa_mm.datasets.sources.shards import ShardError, find_shards, read_contents

SUFFIXES = frozenset({'.jpg', '.jpeg', '.png'})


def contents(path, image=None, label='cls'):
    return read_contents(path, SUFFIXES, image, label)


def names(tmp_path, shards):
    return [path.name for path in find_shards(tmp_path, shards)]


@pytest.fixture
def three(tmp_path):
    for number in (8, 9, 10):
        (tmp_path / f'train-{number:04d}.tar').write_bytes(b'x')
    return tmp_path


def test_braces_keep_their_zeros(three):
    assert names(three, 'train-{0008..0010}.tar') == ['train-0008.tar', 'train-0009.tar', 'train-0010.tar']
    assert names(three, 'train-00{10,08}.tar') == ['train-0010.tar', 'train-0008.tar']
    assert names(three, 'train-*.tar') == names(three, '*.tar') == names(three, 'train-{0008..0010}.tar')
    assert names(three, ['train-0009.tar', 'train-001?.tar']) == ['train-0009.tar', 'train-0010.tar']


@pytest.mark.parametrize(
    'shards, words',
    [
        ('train-{0008..0012}.tar', r'2 shards are not in .*: train-0011\.tar, train-0012\.tar'),
        ('val-*.tar', r'val-\*\.tar'),
        ('train-{0010..0008}.tar', 'counts down'),
        ('train-{0008}.tar', 'neither'),
        (['train-0008.tar', '*.tar'], 'twice: .*train-0008'),
        ([], r'not in .*\[\]'),
    ],
)
def test_what_is_not_there_is_named(three, shards, words):
    with pytest.raises(ShardError, match=words):
        find_shards(three, shards)


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere'):
        find_shards(tmp_path / 'nowhere')


@pytest.mark.parametrize('format', [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_samples_lie_where_it_says(tmp_path, format):
    long = 'é' * 40 + '/' + 'n' * 40  # too long for the field of names
    files = [
        ('000.jpg', b'first'),
        ('000.cls', b'7'),
        ('000.json', b'{}'),
        (f'{long}.PNG', b''),
        ('b.c/001.jpeg', b'x' * 1000),
        ('b.c/001.cls', b' 12\n'),
    ]
    path = write_shard(tmp_path / 'a.tar', files, format)
    found = contents(path)
    assert found.error is None
    assert [name.decode() for name in found.names] == ['000.jpg', f'{long}.PNG', 'b.c/001.jpeg']
    data = path.read_bytes()
    assert [data[at : at + size] for at, size in zip(found.offsets, found.sizes)] == [b'first', b'', b'x' * 1000]
    assert found.labels == [7, None, 12]
    assert not found.left_out


def test_what_is_no_image_is_counted(tmp_path):
    path = tmp_path / 'a.tar'
    write_shard(path, [('0.jpg', b'a'), ('0.txt', b'cat'), ('notes.md', b''), ('._1.jpg', b'a'), ('1.png', b'b')])
    with tarfile.open(path, 'a') as tar:
        for name, kind in (
            ('link.jpg', tarfile.SYMTYPE),
            ('hard.jpg', tarfile.LNKTYPE),
            ('folder.jpg', tarfile.DIRTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, '0.jpg'
            tar.addfile(member)
    found = contents(path)
    assert [name.decode() for name in found.names] == ['0.jpg', '1.png']
    assert found.left_out == {'.txt': 1, '.md': 1, 'hidden': 1, 'links and special files': 2}
    assert contents(path, label='txt').labels == ['cat', None]


def test_classes_in_json(tmp_path):
    path = write_shard(tmp_path / 'a.tar', [('0.jpg', b''), ('0.json', b'{"label": 3, "name": "cat"}')])
    assert contents(path, label='json.label').labels == [3]
    assert contents(path, label='json.name').labels == ['cat']
    assert "'0.json' holds no class: KeyError 'colour'" in contents(path, label='json.colour').error


@pytest.mark.parametrize('text', [b'', b'-3', b'\xff\xfe'])
def test_no_class(tmp_path, text):
    found = contents(write_shard(tmp_path / 'a.tar', [('0.jpg', b''), ('0.cls', text)]))
    assert "'0.cls' holds no class" in found.error


def test_two_images_of_a_sample(tmp_path):
    path = write_shard(tmp_path / 'a.tar', [('0.image.jpg', b'a'), ('0.mask.png', b'b')])
    assert "2 images for '0': image.jpg, mask.png; say which: image='image.jpg'" in contents(path).error
    assert contents(path, image='mask.png').names == [b'0.mask.png']


def whole(tmp_path):
    return write_shard(tmp_path / 'a.tar', [(f'{i}.jpg', bytes([i]) * 700) for i in range(8)]).read_bytes()


@pytest.mark.parametrize('size', [0, 100, 512, 1000, 2 * 1536, 2 * 1536 + 512, 2 * 1536 + 600, 8 * 1536])
def test_truncated_anywhere(tmp_path, size):
    """Also between two members, and before the end mark."""
    data = whole(tmp_path)[:size]
    (tmp_path / 'a.tar').write_bytes(data)
    assert contents(tmp_path / 'a.tar').error


@pytest.mark.parametrize('at', [10, 1536 + 20, 5 * 1536 + 300])
def test_damaged_header(tmp_path, at):
    data = bytearray(whole(tmp_path))
    data[at] ^= 255
    (tmp_path / 'a.tar').write_bytes(data)
    assert contents(tmp_path / 'a.tar').error


def test_compressed(tmp_path):
    (tmp_path / 'a.tar').write_bytes(gzip.compress(whole(tmp_path)))
    assert 'compressed (gzip)' in contents(tmp_path / 'a.tar').error
    assert 'gunzip' in contents(tmp_path / 'a.tar').error


def test_no_tar_at_all(tmp_path):
    (tmp_path / 'a.tar').write_bytes(b'<html>not found</html>' * 100)
    assert contents(tmp_path / 'a.tar').error
