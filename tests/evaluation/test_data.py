import logging
import os

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope, init_default_scope

from poa_mm.evaluation.data import open_data


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmpretrain')
    yield
    DefaultScope._instance_dict.clear()


@pytest.fixture
def warnings(monkeypatch):
    lines = []
    log = MMLogger.get_current_instance()
    monkeypatch.setattr(log, 'log', lambda level, text: level >= logging.WARNING and lines.append(text))
    return lines


@pytest.fixture
def config(tmp_path):
    """Maker of configs whose bank and query are folders of the given classes."""

    def make(bank, query, kind='CustomDataset', **options):
        entry = {}
        for name, classes in (('bank', bank), ('query', query)):
            for label in classes:
                (tmp_path / name / label).mkdir(parents=True)
                for number in range(2):
                    cv2.imwrite(str(tmp_path / name / label / f'{number}.png'), np.zeros((4, 4, 3), np.uint8))
            pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
            prefix = str(tmp_path / name)
            dataset = dict(type=kind, data_prefix=prefix, pipeline=pipeline, serialize_data=False, **options)
            entry[name] = dict(batch_size=3, num_workers=0, dataset=dataset)
        return Config(dict(knn=entry, model=dict(data_preprocessor=dict(mean=[0.0] * 3, std=[1.0] * 3))))

    return make


def labels(loader):
    """The labels that each folder's images have."""
    found = {}
    for batch in loader:
        for sample in batch['data_samples']:
            found.setdefault(os.path.basename(os.path.dirname(sample.img_path)), set()).add(int(sample.gt_label))
    return found


@pytest.mark.parametrize('kind', ['CustomDataset', 'ImageFolder'])
@pytest.mark.parametrize(
    ('bank', 'query'),
    [('ab', 'b'), ('ab', 'a'), ('abc', 'ac'), ('abc', 'abc'), ('bcd', 'ad'), ('ab', 'abc'), ('abcdef', 'fca')],
)
def test_classes_of_the_query_go_by_name(config, bank, query, kind, warnings):
    data = open_data(config(bank, query, kind))
    known = labels(data.bank)
    found = labels(data.query)
    assert known == {name: {number} for number, name in enumerate(bank)}
    assert {name: found[name] for name in set(query) & set(bank)} == {
        name: known[name] for name in set(query) & set(bank)
    }
    strange = sorted(set(query) - set(bank))
    assert all(min(found[name]) >= len(bank) for name in strange), 'never right'
    said = [line for line in warnings if 'no class' in line]
    assert said == (
        [f'knn.bank has no class {strange[0]}: images of the query of that name count as errors'] if strange else []
    )


def test_not_one_class_in_common(config):
    with pytest.raises(ValueError, match=r'no class of knn\.bank: Cat, Dog are not among cat, dog'):
        open_data(config(['cat', 'dog'], ['Cat', 'Dog']))


@pytest.mark.parametrize(('bank', 'query'), [(['.git', 'b'], ['b']), (['a', 'b'], ['.ipynb_checkpoints', 'a', 'b'])])
def test_hidden_folders(config, bank, query):
    cfg = config(bank, query)
    with pytest.raises(ValueError, match='has the hidden folder'):
        open_data(cfg)
    for name in ('bank', 'query'):
        cfg.knn[name].dataset.type = 'ImageFolder'
    data = open_data(cfg)
    assert labels(data.query)['b'] == labels(data.bank)['b']


def test_folders_that_are_not_the_classes_that_were_given(config):
    with pytest.raises(ValueError, match=r"knn\.bank\.dataset: The number of subfolders \(2\) doesn't match"):
        open_data(config('ab', 'ab', classes=['x', 'y', 'z']))


def test_a_query_without_names_is_warned_of(config, tmp_path, warnings):
    cfg = config('ab', 'ab')
    (tmp_path / 'list.txt').write_text('a/0.png 0\nb/1.png 1\n')
    cfg.knn.query.dataset.ann_file = str(tmp_path / 'list.txt')
    assert labels(open_data(cfg).query) == {'a': {0}, 'b': {1}}
    assert 'knn.query has no names of classes: its labels count as they are' in warnings
