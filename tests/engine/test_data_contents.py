"""Files that do not match the config. The classes of mmdet and mmseg have stand-ins of their names."""

import json
import logging

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmpretrain.datasets import CustomDataset

from poa_mm.engine import data_contents
from poa_mm.engine.data_contents import check_contents
from poa_mm.engine.preflight import check_data


class CocoDataset:
    METAINFO = dict(classes=('cat', 'dog'))


class BaseSegDataset:
    METAINFO = {}

    def __init__(
        self, img_suffix='.jpg', seg_map_suffix='.png', reduce_zero_label=False, ignore_index=255, data_prefix=None
    ):
        pass


class ADE20KDataset(BaseSegDataset):
    METAINFO = dict(classes=('wall', 'sky'))

    def __init__(self, img_suffix='.jpg', reduce_zero_label=True, **kwargs):
        pass


@pytest.fixture
def warnings(monkeypatch):
    lines = []
    monkeypatch.setattr(data_contents, 'print_log', lambda text, logger, level: lines.append((level, text)))
    return lines


# --- COCO ------------------------------------------------------------------------------------
def coco(path, names, last=True, **more):
    """A file with the categories at its beginning or its end."""
    categories = dict(categories=[dict(id=7 * i + 3, name=name) for i, name in enumerate(names)])
    images = dict(images=[dict(id=0, file_name='0.jpg', height=8, width=8)], annotations=[])
    path.write_text(json.dumps({**images, **categories, **more} if last else {**categories, **images, **more}))


def config(tmp_path, classes=None):
    (tmp_path / 'img').mkdir(exist_ok=True)
    (tmp_path / 'img' / '0.jpg').touch()
    dataset = dict(data_root=str(tmp_path), ann_file='a.json', data_prefix=dict(img='img/'))
    return dataset if classes is None else dict(dataset, metainfo=dict(classes=classes))


@pytest.mark.parametrize('last', [True, False])
@pytest.mark.parametrize(
    ('names', 'classes', 'message'),
    [
        (['cat', 'dog'], ('cat', 'dog'), None),
        (['cat', 'dog'], None, None),  # the class's own
        (['cat', 'Dog'], None, r'other categories than metainfo\.classes \(dog lacking, Dog more\)'),
        (['cat'], ('cat', 'dog'), r'dog lacking'),
        (['dog', 'cat'], ('cat', 'dog'), r"another order .* write classes=\('dog', 'cat'\)"),
        (['a', 'b', 'c'], ('c', 'a'), r"another order .* write classes=\('a', 'c'\)"),
        (['é "x"', 'b'], ('é "x"', 'b'), None),
        (['cat '], ('cat',), 'cat lacking, cat  more'),
        (['a'], ['b'], 'Its categories are a'),
    ],
)
def test_categories_are_the_classes(tmp_path, names, classes, message, last):
    coco(tmp_path / 'a.json', names, last)
    dataset = config(tmp_path, classes)
    if message is None:
        check_contents('train_dataloader.dataset', dataset, CocoDataset)
    else:
        with pytest.raises(ValueError, match=rf'train_dataloader\.dataset\.ann_file = .*a\.json has .*{message}'):
            check_contents('train_dataloader.dataset', dataset, CocoDataset)


def test_categories_that_are_left_out_are_said(tmp_path, warnings):
    coco(tmp_path / 'a.json', ['cat', 'bee', 'dog'])
    check_contents('x', config(tmp_path), CocoDataset)
    ((level, text),) = warnings
    assert level == logging.WARNING and text.endswith('the categories bee are not in metainfo.classes, and left out')


def test_the_word_categories_elsewhere_is_not_taken_for_them(tmp_path):
    coco(tmp_path / 'a.json', ['cat', 'dog'], info={'categories': [1, 2], 'text': '"categories": [broken'})
    check_contents('x', config(tmp_path), CocoDataset)


def test_a_file_without_categories_is_left_to_the_library(tmp_path):
    (tmp_path / 'a.json').write_text('{}')
    check_contents('x', config(tmp_path), CocoDataset)
    (tmp_path / 'a.json').write_text('')
    check_contents('x', config(tmp_path), CocoDataset)


def test_images_of_another_folder(tmp_path):
    coco(tmp_path / 'a.json', ['cat', 'dog'])
    dataset = dict(config(tmp_path), data_prefix=dict(img='.'))
    with pytest.raises(ValueError, match=r'names images such as 0\.jpg, which are not in'):
        check_contents('x', dataset, CocoDataset)


def test_the_metric_of_mmdet_is_compared_too(tmp_path):
    coco(tmp_path / 'a.json', ['cat', 'dog'])
    coco(tmp_path / 'b.json', ['dog', 'cat'])
    cfg = Config(
        dict(
            val_dataloader=dict(dataset=dict(type=CocoDataset, **config(tmp_path))),
            val_evaluator=dict(type='CocoMetric', ann_file=str(tmp_path / 'a.json')),
        )
    )
    check_data(cfg, ['val'])
    cfg.val_evaluator.ann_file = str(tmp_path / 'b.json')
    with pytest.raises(ValueError, match=r'val_evaluator\.ann_file = .*b\.json has its categories in another order'):
        check_data(cfg, ['val'])


# --- segmentation ----------------------------------------------------------------------------
@pytest.fixture
def scenes(tmp_path):
    """Images and label maps of the given values; the config of a data set of them."""

    def make(values, image='.jpg', label='.png', **options):
        for name in ('img', 'ann'):
            (tmp_path / name / 'deep').mkdir(parents=True, exist_ok=True)
        for number, value in enumerate(values):
            (tmp_path / 'img' / 'deep' / f'{number}{image}').touch()
            if value is not None:
                cv2.imwrite(str(tmp_path / 'ann' / 'deep' / f'{number}{label}'), np.array(value, np.uint8))
        return dict(data_root=str(tmp_path), data_prefix=dict(img_path='img', seg_map_path='ann'), **options)

    return make


TWO = dict(metainfo=dict(classes=('a', 'b')))
MAP = [[0, 1], [1, 255]]


@pytest.mark.parametrize(
    ('kind', 'values', 'options', 'message'),
    [
        (BaseSegDataset, [MAP], TWO, None),
        (BaseSegDataset, [MAP, [[2]]], TWO, r'deep/1\.png has the labels 2, and by metainfo\.classes they end at 1'),
        (BaseSegDataset, [[[2]]], dict(TWO, reduce_zero_label=True), None),
        (BaseSegDataset, [[[7]]], dict(TWO, ignore_index=7), None),
        (BaseSegDataset, [[[3, 4]]], dict(TWO, reduce_zero_label=True), 'has the labels 3, 4, .* end at 2'),
        (BaseSegDataset, [[[200]]], {}, None),  # nobody says how many classes there are
        (ADE20KDataset, [[[2]]], {}, None),
        (ADE20KDataset, [[[3]]], {}, 'has the labels 3'),
        (ADE20KDataset, [[[2]]], dict(metainfo=dict(classes=('sky',))), None),  # chosen from the class's
        (BaseSegDataset, [[[[0, 0, 0]]]], TWO, 'has 3 channels'),
        (BaseSegDataset, [MAP, None], TWO, r'1 of 2 images have no label map: that of deep/1\.jpg would be .*1\.png'),
        (
            BaseSegDataset,
            [MAP],
            dict(TWO, seg_map_suffix='.tif'),
            r"\.tif \(seg_map_suffix='\.tif'\); there are 1 \.png",
        ),
        (BaseSegDataset, [MAP], dict(TWO, img_suffix='.png'), r"ends in img_suffix='\.png'; there are 1 \.jpg"),
        (BaseSegDataset, [MAP], dict(TWO, img_suffix='.JPG'), r"ends in img_suffix='\.JPG'; there are 1 \.jpg"),
        (BaseSegDataset, [], TWO, 'there are none at all'),
    ],
)
def test_images_and_label_maps(scenes, kind, values, options, message):
    dataset = scenes(values, **options)
    if message is None:
        check_contents('x', dataset, kind)
    else:
        with pytest.raises(ValueError, match=message):
            check_contents('x', dataset, kind)


# --- classification --------------------------------------------------------------------------
@pytest.mark.parametrize(
    ('text', 'options', 'number', 'message'),
    [
        ('a.png 0\nb c.png 2\n\n', {}, 3, None),
        ('a.png 0\nb c.png 3\n', {}, 3, r'has the label 3 \(b c\.png\); with 3 classes, labels end at 2'),
        ('a.png 1\n', {}, None, None),
        ('a.png 2\n', dict(classes=['x', 'y']), 9, 'has the label 2 .* with 2 classes'),
        ('a.png 2\n', dict(metainfo=dict(classes=('x', 'y'))), None, 'has the label 2'),
        ('a.png cat\n', {}, 3, "'a.png cat' does not end in a blank and the number of a class"),
        ('a.png -1\n', {}, 3, "'a.png -1' does not end in"),
        ('a.png\n', {}, 3, "'a.png' does not end in"),
        ('\n', {}, 3, 'is empty'),
        ('a.png 0\ngone.png 1\n', {}, 3, r'names gone\.png, which is not in'),
        ('a.png\n', dict(with_label=False), 3, None),
    ],
)
def test_lists_of_images(tmp_path, text, options, number, message):
    for name in ('a.png', 'b c.png'):
        (tmp_path / name).touch()
    (tmp_path / 'list.txt').write_text(text)
    dataset = dict(data_root=str(tmp_path), ann_file='list.txt', **options)
    if message is None:
        check_contents('x', dataset, CustomDataset, number)
    else:
        with pytest.raises(ValueError, match=message):
            check_contents('x', dataset, CustomDataset, number)


def test_the_head_of_the_config_counts(tmp_path):
    (tmp_path / 'a.png').touch()
    (tmp_path / 'list.txt').write_text('a.png 5\n')
    dataset = dict(type='CustomDataset', data_root=str(tmp_path), ann_file='list.txt')
    cfg = Config(
        dict(default_scope='mmpretrain', model=dict(head=dict(num_classes=5)), val_dataloader=dict(dataset=dataset))
    )
    with pytest.raises(ValueError, match=r'val_dataloader\.dataset\.ann_file = .* has the label 5'):
        check_data(cfg, ['val'])
    cfg.model.head.num_classes = 6
    check_data(cfg, ['val'])
