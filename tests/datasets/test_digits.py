import numpy as np
import pytest
from mmengine.registry import init_default_scope
from sklearn.datasets import load_digits

from poa_mm.datasets import Digits


def indices(split):
    return {item['sample_idx'] for item in Digits(split).load_data_list()}


def test_splits_share_nothing_and_cover_everything():
    assert indices('train') | indices('test') == set(range(1797))
    assert not indices('train') & indices('test')
    assert indices('fit') | indices('val') == indices('train')
    assert not indices('fit') & indices('val')


def test_held_out_part_has_every_class():
    labels = [item['gt_label'] for item in Digits('test').load_data_list()]
    assert len(labels) == 364
    assert np.bincount(labels).min() >= 35


def test_images_are_those_of_scikit_learn():
    item = Digits('test')[0]
    digits = load_digits()
    assert item['img'].shape == (8, 8, 3)
    assert item['img'].dtype == np.uint8
    np.testing.assert_allclose(item['img'][..., 1] / 255 * 16, digits.images[item['sample_idx']], atol=0.04)
    assert item['gt_label'] == digits.target[item['sample_idx']]


def test_goes_through_a_pipeline():
    init_default_scope('mmpretrain')
    sample = Digits('val', pipeline=[dict(type='PackInputs')])[0]
    assert sample['inputs'].shape == (3, 8, 8)
    assert 0 <= sample['data_samples'].gt_label.item() <= 9


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="'dev' is not one of train, test, fit, val"):
        Digits('dev')
