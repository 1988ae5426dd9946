import logging
import os

import cv2
import numpy as np
import pytest
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS

from poa_mm.datasets import ImageFolder


@pytest.fixture
def root(tmp_path):
    """Two classes, a hidden folder, and files of every sort."""
    for path in ('cat/1.png', 'cat/deep/2.JPG', 'dog/3.png', '.ipynb_checkpoints/1-checkpoint.png', 'dog/4.webp'):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / path), np.zeros((4, 4, 3), np.uint8))
    (tmp_path / 'cat' / 'notes.txt').write_text('')
    return tmp_path


@pytest.fixture
def log(monkeypatch):
    """Level and text of what is logged."""
    lines = []
    monkeypatch.setattr(
        MMLogger.get_current_instance(),
        'log',
        lambda level, text: level > logging.DEBUG and lines.append((level, text)),
    )
    return lines


def read(dataset, root):
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    return [(os.path.relpath(info['img_path'], root), info.get('gt_label')) for info in infos]


def test_without_labels(root, log):
    dataset = DATASETS.build(dict(type='ImageFolder', data_prefix=str(root), with_label=False))
    assert read(dataset, root) == [(p, None) for p in ('cat/1.png', 'cat/deep/2.JPG', 'dog/3.png', 'dog/4.webp')]
    text = f'{root}: 4 images used (2 .png, 1 .jpg, 1 .webp); 1 file left out (1 .txt); 1 hidden skipped'
    assert log == [(logging.WARNING, text)]


def test_folders_are_classes_but_hidden_ones(root):
    dataset = ImageFolder(data_root=str(root.parent), data_prefix=root.name, serialize_data=False)
    assert dataset.metainfo['classes'] == ('cat', 'dog')
    assert read(dataset, root) == [('cat/1.png', 0), ('cat/deep/2.JPG', 0), ('dog/3.png', 1), ('dog/4.webp', 1)]


def test_nothing_left_out_is_no_warning(root, log):
    (root / 'cat' / 'notes.txt').unlink()
    ImageFolder(data_prefix=str(root), serialize_data=False)
    assert [level for level, _ in log] == [logging.INFO]


@pytest.mark.parametrize('classes', [['ape', 'cat', 'dog'], ['dog', 'cat', 'zebra'], ['dog', 'cat']])
def test_classes_go_by_name(root, log, classes):
    dataset = ImageFolder(data_prefix=str(root), classes=classes, serialize_data=False)
    assert {path.split('/')[0]: label for path, label in read(dataset, root)} == {
        'cat': classes.index('cat'),
        'dog': classes.index('dog'),
    }
    assert dataset.metainfo['classes'] == tuple(classes)
    lacking = ', '.join(set(classes) - {'cat', 'dog'})
    assert any(text == f'{root} has no images of {lacking}' for _, text in log) == bool(lacking)


def test_classes_of_another_folder(root, tmp_path_factory):
    other = tmp_path_factory.mktemp('train')
    for name in ('bee', 'cat', 'dog', '.git'):
        (other / name).mkdir()
    dataset = ImageFolder(data_prefix=str(root), class_root=str(other), serialize_data=False)
    assert dataset.metainfo['classes'] == ('bee', 'cat', 'dog')
    assert [label for _, label in read(dataset, root)] == [1, 1, 2, 2]
    with pytest.raises(ValueError, match='classes and class_root'):
        ImageFolder(data_prefix=str(root), class_root=str(other), classes=['cat', 'dog'], serialize_data=False)


def test_a_folder_that_is_no_class(root):
    with pytest.raises(ValueError, match=r'has the folders dog, which are none of the classes cat, Dog$'):
        ImageFolder(data_prefix=str(root), classes=['cat', 'Dog'], serialize_data=False)


def test_a_class_without_images_keeps_its_number(root, log):
    (root / 'bee').mkdir()
    dataset = ImageFolder(data_prefix=str(root), serialize_data=False)
    assert dataset.metainfo['classes'] == ('bee', 'cat', 'dog')
    assert [label for _, label in read(dataset, root)] == [1, 1, 2, 2]
    assert (logging.WARNING, f'{root} has no images of bee') in log


@pytest.mark.parametrize('with_label', [True, False])
def test_no_images_at_all(tmp_path, with_label):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a' / 'x.heic').write_text('')
    with pytest.raises(ValueError, match=r'no images in .*: 0 images used; 1 file left out \(1 \.heic\)$'):
        ImageFolder(data_prefix=str(tmp_path), with_label=with_label)


def test_annotations_still_work(root, tmp_path_factory):
    ann = tmp_path_factory.mktemp('ann') / 'list.txt'
    ann.write_text('cat/1.png 7\ndog/3.png 2\n')
    dataset = ImageFolder(data_prefix=str(root), ann_file=str(ann), serialize_data=False)
    assert read(dataset, root) == [('cat/1.png', 7), ('dog/3.png', 2)]
