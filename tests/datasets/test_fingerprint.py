import os

import cv2
import numpy as np
import pytest

from poa_mm.datasets import Digits, ImageFolder, TarImages
from poa_mm.datasets.classes import RelabelledDataset
from poa_mm.datasets.fingerprint import fingerprint
from poa_mm.datasets.sources import FolderSource
from poa_mm.datasets.write_shards import write_shards

LOAD = [dict(type='SafeLoadImageFromFile')]


@pytest.fixture
def folder(tmp_path):
    """Two classes of two images."""
    for name in ('a/0', 'a/1', 'b/0', 'b/1'):
        path = tmp_path / 'images' / f'{name}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((4, 4, 3), 7, np.uint8))
    return tmp_path / 'images'


def of(folder):
    return fingerprint(ImageFolder(data_prefix=str(folder), pipeline=LOAD))


def rewrite(path):
    cv2.imwrite(str(path), np.full((4, 4, 3), 8, np.uint8))


@pytest.mark.parametrize(
    'change',
    [
        lambda folder: rewrite(folder / 'a' / '1.png'),
        lambda folder: os.utime(folder / 'a' / '1.png', ns=(0, 0)),
        lambda folder: (folder / 'a' / '1.png').rename(folder / 'b' / '2.png'),
        lambda folder: (folder / 'a' / '1.png').unlink(),
        lambda folder: rewrite(folder / 'a' / '2.png'),
    ],
    ids=['another image', 'another time', 'another class', 'one less', 'one more'],
)
def test_a_change_is_noticed(folder, change):
    before = of(folder)
    assert before.startswith('4 images, ') and of(folder) == before
    change(folder)
    assert of(folder) != before


def test_shards(folder, tmp_path):
    write_shards(FolderSource(folder, suffixes=('.png',)), tmp_path / 'shards')

    def of_shards():
        return fingerprint(TarImages(str(tmp_path / 'shards'), pipeline=LOAD, cache_dir=tmp_path / 'index'))

    before = of_shards()
    assert of_shards() == before
    (shard,) = (tmp_path / 'shards').glob('*.tar')
    os.utime(shard, ns=(0, 0))
    assert of_shards() != before


def test_images_in_memory():
    assert fingerprint(Digits('fit')) == fingerprint(Digits('fit')) != fingerprint(Digits('val'))


def test_wrappers_and_others():
    digits = Digits('test')
    assert fingerprint(RelabelledDataset(digits, range(10))) == fingerprint(digits)
    assert fingerprint([1, 2]).startswith('2 images, ')
