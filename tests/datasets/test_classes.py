from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmpretrain.datasets import CustomDataset

from poa_mm.datasets import Digits, ImageFolder, RelabelledDataset, SeededDataset
from poa_mm.datasets.classes import class_names, difference, same_labels


@pytest.fixture
def folders(tmp_path):
    """Maker of folders of images, one for each class."""

    def make(name, *classes):
        for number, kind in enumerate(classes):
            (tmp_path / name / kind).mkdir(parents=True)
            cv2.imwrite(str(tmp_path / name / kind / f'{number}.png'), np.full((4, 4, 3), number, np.uint8))
        return str(tmp_path / name)

    return make


@pytest.mark.parametrize('kind', [CustomDataset, ImageFolder])
def test_folders_name_the_classes(folders, kind):
    dataset = kind(data_prefix=folders('a', 'dog', 'cat'), serialize_data=False)
    assert class_names(dataset) == ('cat', 'dog')
    assert class_names(SeededDataset(RepeatDataset(dataset, 2))) == ('cat', 'dog')


def test_names_that_were_given_do_not_hide_the_folders(folders):
    """CustomDataset gives labels by the folders' order, whatever the classes are called."""
    dataset = CustomDataset(data_prefix=folders('a', 'n1', 'n2'), classes=['dog', 'cat'])
    assert class_names(dataset) == ('n1', 'n2')


def test_hidden_folders_are_no_classes(folders):
    root = folders('a', 'cat', '.ipynb_checkpoints')
    assert class_names(ImageFolder(data_prefix=root)) == ('cat',)
    with pytest.raises(ValueError, match=r"hidden folder \.ipynb_checkpoints, .* CustomDataset .* type='ImageFolder'"):
        class_names(CustomDataset(data_prefix=root))


def test_data_sets_that_have_no_folders():
    assert class_names(Digits('val')) == tuple('0123456789')
    assert class_names(SimpleNamespace(metainfo={})) is None
    assert class_names([1, 2]) is None


def test_parts_must_agree(folders):
    one = CustomDataset(data_prefix=folders('a', 'cat', 'dog'), classes=['x', 'y'])
    other = CustomDataset(data_prefix=folders('b', 'bee', 'cat'), classes=['x', 'y'])
    assert class_names(ConcatDataset([one, one])) == ('cat', 'dog')
    with pytest.raises(ValueError, match='other classes: dog lacking, bee more'):
        class_names(ConcatDataset([one, other]))


@pytest.mark.parametrize(
    ('second', 'text'),
    [
        (['a', 'b'], 'c lacking'),
        (['a', 'b', 'c', 'd'], 'd more'),
        (['a', 'B', 'c'], 'b lacking, B more'),
        (['a', 'c', 'b'], 'class 1 is b there and c here'),
    ],
)
def test_differences_in_words(second, text):
    assert difference(['a', 'b', 'c'], second) == text


def test_many_names_are_cut_short():
    assert difference([f'c{i}' for i in range(9)], ['c0']) == 'c1, c2, c3, c4, c5 and 3 others lacking'


def test_which_labels_mean_the_same():
    assert same_labels(('a', 'b'), ['a', 'b'])
    assert same_labels(('a', 'b'), ('a',)), 'those that are missing come last'
    assert same_labels(None, ('a',)) and same_labels(('a',), None)
    assert not same_labels(('a', 'b'), ('b',))
    assert not same_labels(('a', 'b'), ('b', 'a'))
    assert not same_labels(('a', 'b'), ('a', 'b', 'c'))


def test_relabelled():
    pipeline = [dict(type='PackInputs')]
    dataset = RelabelledDataset(Digits('val', pipeline=pipeline), labels=[9 - label for label in range(10)])
    plain = Digits('val', pipeline=pipeline)
    assert len(dataset) == len(plain)
    for index in range(0, len(plain), 17):
        assert int(dataset[index]['data_samples'].gt_label) == 9 - int(plain[index]['data_samples'].gt_label)
        assert (dataset[index]['inputs'] == plain[index]['inputs']).all()
