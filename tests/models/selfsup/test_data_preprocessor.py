import pytest
import torch
from mmengine.registry import MODELS
from mmpretrain.models import SelfSupDataPreprocessor
from mmpretrain.structures import DataSample
from torch.testing import assert_close

SETTINGS = dict(mean=[1.5, 20.5, 30.5], std=[4.0, 5.0, 6.0])


def batch(views):
    return dict(inputs=views, data_samples=[DataSample(mask=torch.ones(2, 1, 1)) for _ in range(2)])


@pytest.mark.parametrize('options', [{}, SETTINGS, SETTINGS | dict(to_rgb=True), dict(bgr_to_rgb=True)])
def test_the_same_numbers_as_mmpretrain(options):
    views = [torch.randint(256, (2, 3, size, size), dtype=torch.uint8) for size in (8, 8, 4)]
    ours = MODELS.build(dict(type='MultiCropDataPreprocessor', **options))
    theirs = SelfSupDataPreprocessor(**options)
    assert_close(ours(batch(views))['inputs'], theirs(batch(views))['inputs'], rtol=0, atol=0)
    assert_close(ours(batch(views[0]))['inputs'], theirs(batch(views[0]))['inputs'], rtol=0, atol=0)


def test_samples_stay_where_they_are():
    ours = MODELS.build(dict(type='MultiCropDataPreprocessor', **SETTINGS)).to('meta')
    found = ours(batch([torch.zeros(2, 3, 4, 4, dtype=torch.uint8)] * 2))
    assert all(view.is_meta for view in found['inputs'])
    assert not any(sample.mask.is_meta for sample in found['data_samples'])
    assert ours(dict(inputs=[torch.zeros(1, 3, 2, 2)]))['data_samples'] is None
