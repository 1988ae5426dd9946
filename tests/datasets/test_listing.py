import contextlib
import inspect
import os
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmpretrain.datasets import CustomDataset

from poa_mm.datasets.listing import SUFFIXES, Counts, class_folders, iter_images, list_images


def make(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b'')
    return root


def test_every_suffix_counts_in_any_case(tmp_path):
    names = [f'a{suffix}' for suffix in SUFFIXES] + [f'b{suffix.upper()}' for suffix in SUFFIXES]
    make(tmp_path, *names, 'c.Tiff', 'deep/er/d.WebP')
    found, counts = list_images(tmp_path)
    assert found == sorted([*names, 'c.Tiff', 'deep/er/d.WebP'])
    assert counts.used['.tiff'] == counts.used['.webp'] == 3
    assert not counts.left_out


def test_what_is_left_out_is_counted_by_suffix(tmp_path):
    make(
        tmp_path,
        'a.jpg',
        'b.HEIC',
        'c.heic',
        'notes.txt',
        'x/README',
        'x/jpg',
        'odd.',
        'photo.jpg.part',
        'archive.tar.gz',
    )
    os.symlink('nowhere.jpg', tmp_path / 'broken.jpg')
    os.symlink('itself.jpg', tmp_path / 'itself.jpg')
    os.mkfifo(tmp_path / 'pipe.jpg')
    found, counts = list_images(tmp_path)
    assert found == ['a.jpg']
    assert counts.left_out == {
        '.heic': 2,
        '.txt': 1,
        'without suffix': 2,
        '.': 1,
        '.part': 1,
        '.gz': 1,
        'neither file nor folder': 3,
    }
    assert str(counts).startswith(
        '1 image used (1 .jpg); 11 files left out (3 neither file nor folder, 2 .heic, 2 without'
    )


def test_hidden_files_and_folders_are_skipped(tmp_path):
    make(tmp_path, 'a.jpg', '.b.jpg', '._a.jpg', '.ipynb_checkpoints/a.jpg', 'x/.cache/y/c.png', 'x/d.png', '.jpg')
    found, counts = list_images(tmp_path)
    assert found == ['a.jpg', 'x/d.png']
    assert counts.hidden == 5
    assert '5 hidden skipped' in str(counts)


def test_a_root_may_be_hidden_itself(tmp_path):
    make(tmp_path, '.data/a.jpg')
    assert list_images(tmp_path / '.data')[0] == ['a.jpg']


@pytest.mark.parametrize('target', ['.', '..', '../..', '/', '{tmp}', 'x/y'])
def test_loops_are_noticed(tmp_path, target):
    root = make(tmp_path / 'root', 'a.jpg', 'x/y/b.jpg')
    os.symlink(target.format(tmp=root), root / 'x' / 'y' / 'loop')
    if target == 'x/y':  # a link to nothing, seen from there
        assert list_images(root)[1].left_out == {'neither file nor folder': 1}
        return
    found, counts = list_images(root)
    assert found == ['a.jpg', 'x/y/b.jpg']
    assert counts.loops == ['x/y/loop']
    assert '1 link to a folder above skipped (x/y/loop)' in str(counts)


def test_two_folders_that_lead_into_each_other(tmp_path):
    make(tmp_path, 'a/1.jpg', 'b/2.jpg')
    os.symlink('../b', tmp_path / 'a' / 'b')
    os.symlink('../a', tmp_path / 'b' / 'a')
    found, counts = list_images(tmp_path)
    assert found == ['a/1.jpg', 'a/b/2.jpg', 'b/2.jpg', 'b/a/1.jpg']
    assert sorted(counts.loops) == ['a/b/a', 'b/a/b']


def test_links_to_elsewhere_are_followed(tmp_path):
    make(tmp_path, 'else/deep/1.jpg', 'one.png')
    root = tmp_path / 'root'
    root.mkdir()
    os.symlink('../else', root / 'linked')
    os.symlink('../one.png', root / 'file.png')
    os.symlink(root, tmp_path / 'link to root')
    assert list_images(root)[0] == ['file.png', 'linked/deep/1.jpg']
    assert list_images(tmp_path / 'link to root')[0] == ['file.png', 'linked/deep/1.jpg']


def test_deeper_than_a_recursion_could_go(tmp_path):
    path = os.path.join(*'d' * 200, 'a.jpg')
    make(tmp_path, path)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 60)
    try:
        found, _ = list_images(tmp_path)
    finally:
        sys.setrecursionlimit(limit)
    assert found == [path]


def test_suffixes_of_ones_own(tmp_path):
    make(tmp_path, 'a.OME.TIF', 'b.tif', 'c.jpg')
    found, counts = list_images(tmp_path, ['.ome.tif', '.jpg'])
    assert found == ['a.OME.TIF', 'c.jpg']
    assert counts.left_out == {'.tif': 1}


def test_a_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match='gone'):
        list_images(tmp_path / 'gone')
    with pytest.raises(NotADirectoryError, match=r'a\.jpg'):
        list_images(make(tmp_path, 'a.jpg') / 'a.jpg')


NAMES = st.text('ab .JpgPNtifé', min_size=1, max_size=8).filter(
    lambda name: name.strip('.') and not name.startswith('.')
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(NAMES, min_size=1, max_size=3), max_size=8))
def test_the_order_is_that_of_custom_dataset(tmp_path_factory, paths):
    """An unchanged folder is read in the order in which it always was, so that runs can be resumed."""
    root = tmp_path_factory.mktemp('root')
    for path in paths:
        with contextlib.suppress(OSError):  # of a folder that has the name of a file, or the other way round
            make(root, '/'.join([*path[:-1], path[-1] + '.jpg']))
    make(root, 'z.png')
    theirs = CustomDataset(data_prefix=str(root), with_label=False, serialize_data=False)
    ours = list_images(root)[0]
    assert [os.path.join(root, path) for path in ours] == [
        theirs.get_data_info(i)['img_path'] for i in range(len(theirs))
    ]


def test_classes(tmp_path):
    make(tmp_path, 'dog/1.jpg', 'cat/x/2.jpg', '.ipynb_checkpoints/3.jpg', '4.jpg', '.DS_Store')
    (tmp_path / 'empty').mkdir()
    os.symlink('.', tmp_path / 'loop')
    os.symlink('..', tmp_path / 'above')
    counts = Counts()
    assert class_folders(tmp_path, counts) == ['cat', 'dog', 'empty']
    assert counts.loops == ['above', 'loop'] and counts.hidden == 2
    assert counts.left_out == {'outside of the class folders': 1}
    assert list(iter_images(tmp_path, counts, folder='cat')) == ['cat/x/2.jpg']


def test_a_loop_inside_of_a_class(tmp_path):
    make(tmp_path, 'cat/1.jpg', 'dog/2.jpg')
    os.symlink('..', tmp_path / 'cat' / 'all')
    counts = Counts()
    assert list(iter_images(tmp_path, counts, folder='cat')) == ['cat/1.jpg']
    assert counts.loops == ['cat/all']


class Remote:
    """A storage that lists relative paths."""

    def __init__(self, *paths):
        self.paths = paths

    def join_path(self, root, *parts):
        return '/'.join([root, *parts])

    def list_dir_or_file(self, root, list_dir=True, list_file=True, recursive=False):
        assert root == 's3://bucket'
        if recursive:
            return iter(self.paths)
        return iter({path.split('/')[0] for path in self.paths if ('/' in path) == list_dir})


def test_other_storage_by_the_same_rules(monkeypatch):
    remote = Remote('b/1.WEBP', 'b/2.txt', 'a/3.jpg', '.x/4.jpg', 'a/.5.jpg', '6.png')
    monkeypatch.setattr('poa_mm.datasets.listing.get_file_backend', lambda *args, **kwargs: remote)
    found, counts = list_images('s3://bucket')
    assert found == ['6.png', 'a/3.jpg', 'b/1.WEBP']
    assert counts.hidden == 2 and counts.left_out == {'.txt': 1}
    assert class_folders('s3://bucket') == ['a', 'b']
