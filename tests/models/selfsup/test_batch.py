import pytest
import torch
from mmpretrain.structures import DataSample
from torch.testing import assert_close

from poa_mm.models.selfsup.batch import MultiCropBatch

GRID = (2, 3)


def views(*sizes, batch=3):
    """One view of ``batch`` images for each size, filled with its number."""
    return [torch.full((batch, 1, size, size), float(index)) for index, size in enumerate(sizes)]


def samples(batch=3):
    """Masks in which image i has i patches masked in the first crop and i + 3 in the second."""
    counts = torch.arange(6).view(2, batch, 1)
    masks = (torch.arange(6) < counts).view(2, batch, *GRID)
    return [DataSample(mask=masks[:, image]) for image in range(batch)]


def collate(inputs, data_samples=None, masked=False):
    return MultiCropBatch.collate(inputs, data_samples, GRID, masked=masked)


def test_views_are_stacked_crop_major():
    batch = collate(views(4, 4, 2, 2, 2))
    assert batch.global_views.shape == (6, 1, 4, 4) and batch.local_views.shape == (9, 1, 2, 2)
    assert batch.global_views[:, 0, 0, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert batch.local_views[:, 0, 0, 0].tolist() == [2, 2, 2, 3, 3, 3, 4, 4, 4]


def test_masks_are_stacked_crop_major():
    masks = collate(views(4, 4), samples(), masked=True).masks
    assert masks.dtype == torch.bool and masks.shape == (6, 6)
    assert masks.sum(dim=1).tolist() == [0, 1, 2, 3, 4, 5]


def test_masked_patches_and_their_shares():
    batch = collate(views(4, 4), samples(), masked=True)
    assert torch.equal(batch.masked.T, batch.masks.nonzero())
    patches = torch.randn(6, 6, 5)
    assert torch.equal(batch.masked_of(patches), patches[batch.masks])
    shares = torch.zeros(6, 6).index_put(tuple(batch.masked), batch.mask_shares)
    assert_close(shares.sum(dim=1), torch.tensor([0, *[1 / 6] * 5]))  # of six views, the first has no masked patch
    assert all(len(row[row > 0].unique()) <= 1 for row in shares)


def test_masks_of_the_host_are_looked_at_there():
    batch = collate([view.to('meta') for view in views(4, 4)], samples(), masked=True)
    assert batch.masked.shape == (2, 15) and batch.masked.is_meta
    assert batch.mask_shares.shape == (15,) and batch.mask_shares.is_meta


def test_masks_are_read_row_by_row():
    data_samples = samples()
    data_samples[1].mask[1] = torch.tensor([[False, False, True], [True, False, False]])
    masks = collate(views(4, 4), data_samples, masked=True).masks
    assert masks[3 + 1].nonzero().flatten().tolist() == [2, 3]


@pytest.mark.parametrize('data_samples', [None, [], samples(), [DataSample()] * 3])
def test_without_masks_nothing_is_masked_and_samples_are_not_looked_at(data_samples):
    batch = collate(views(4, 4), data_samples)
    assert batch.masks.dtype == torch.bool and batch.masks.shape == (6, 6) and not batch.masks.any()
    assert batch.masked.shape == (2, 0) and batch.mask_shares.shape == (0,)
    assert batch.masked_of(torch.ones(6, 6, 5)).shape == (0, 5)


def test_local_crops_are_optional():
    assert collate(views(4, 4)).local_views is None


def test_tuple_is_as_good_as_a_list():
    for first, second in zip(collate(views(4, 4, 2)), collate(tuple(views(4, 4, 2)))):
        assert_close(first, second)


@pytest.mark.parametrize(
    'inputs', [torch.zeros(2, 3, 1, 4, 4), 'views', {'inputs': views(4, 4)}, [1, 2], [[0.0], [0.0]]]
)
def test_other_types_are_refused(inputs):
    with pytest.raises(TypeError, match='must be a list of views'):
        collate(inputs)


@pytest.mark.parametrize(
    'inputs, message',
    [
        ([], r'the first two views must be global crops .* got \[\]'),
        (views(4), r'the first two views .* got \[\(3, 1, 4, 4\)\]'),
        (views(4, 2), r'the first two views .*\(3, 1, 2, 2\)'),
        ([torch.zeros(1, 4, 4)] * 2, r'the first two views .*\(1, 4, 4\)'),
        (views(4, 4) + views(2, batch=2), r'the views from the third on .*\(2, 1, 2, 2\)'),
        (views(4, 4, 2, 3), r'the views from the third on .*\(3, 1, 3, 3\)'),
        ([*views(4, 4), torch.zeros(3, 3, 2, 2)], r'the views from the third on .*\(3, 3, 2, 2\)'),
    ],
)
def test_bad_views_are_refused(inputs, message):
    with pytest.raises(ValueError, match=message):
        collate(inputs)


@pytest.mark.parametrize(
    'data_samples, message',
    [
        (None, '3 data samples with a mask are needed, one for each image; got none'),
        ([], 'got 0'),
        (samples()[:2], 'got 2'),
        ([*samples()[:2], DataSample()], 'has no mask: add BlockMask to the pipeline or set patch_weight=0'),
        ([DataSample(mask=torch.zeros(2, 3, 2, dtype=torch.bool))] * 3, r'\(2, 3, 2\) .* must be boolean \(2, 2, 3\)'),
        ([DataSample(mask=torch.zeros(2, 3, dtype=torch.bool))] * 3, r'\(2, 3\) .* must be boolean \(2, 2, 3\)'),
        ([DataSample(mask=torch.zeros(2, 6, dtype=torch.bool))] * 3, r'\(2, 6\) .* must be boolean \(2, 2, 3\)'),
        ([DataSample(mask=torch.zeros(2, 2, 3))] * 3, r'torch.float32 must be boolean \(2, 2, 3\)'),
    ],
)
def test_bad_masks_are_refused(data_samples, message):
    with pytest.raises(ValueError, match=message):
        collate(views(4, 4), data_samples, masked=True)
