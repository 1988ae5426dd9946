"""A queue of embeddings lets Sinkhorn-Knopp see more than a batch; two ranks: test_poa_distributed.py."""

import pytest
import torch
from mmpretrain.structures import DataSample
from torch.testing import assert_close

from poa_mm.models import POA, SinkhornKnopp
from poa_mm.models.selfsup.batch import MultiCropBatch
from poa_mm.models.selfsup.embedding_queue import EmbeddingQueue

CONFIG = dict(
    backbone=dict(
        type='ElasticVisionTransformer',
        arch=dict(embed_dims=32, num_layers=3, num_heads=4, feedforward_channels=64),
        widths=[16, 24, 32],
        depths=[2, 3],
        img_size=32,
        patch_size=8,
    ),
    head=dict(type='MultiPrototypeHead', num_prototypes=[16, 32], hidden_channels=32, bottleneck_channels=16),
)


def make_data(seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(3, 3, side, side, generator=generator) for side in (32, 32, 16)]
    masks = torch.rand(3, 2, 4, 4, generator=generator) < 0.4
    return dict(inputs=inputs, data_samples=[DataSample(mask=mask) for mask in masks])


@pytest.fixture
def make_poa(randomise):
    def make(**options):
        torch.manual_seed(0)
        return randomise(POA(**CONFIG, **options)).train()

    return make


def rows(*numbers):
    return torch.tensor(numbers, dtype=torch.float32)[:, None].expand(-1, 2)


def test_first_in_first_out():
    queue = EmbeddingQueue(5, 2)
    queue.push(rows(1, 2))
    assert_close(queue.rows, rows(1, 2, 0, 0, 0))
    queue.push(rows(3, 4))
    queue.push(rows(5))
    assert_close(queue.rows, rows(5, 3, 4, 1, 2))
    queue.push(rows(6, 7))
    assert_close(queue.rows, rows(6, 7, 5, 3, 4))
    queue.push(rows(*range(10, 17)))  # more than it holds
    assert_close(queue.rows, rows(10, 11, 12, 13, 14))


def test_what_is_not_finite_stays_out():
    queue = EmbeddingQueue(3, 2)
    queue.push(torch.tensor([[1.0, 2.0], [torch.nan, 1.0], [1.0, torch.inf]]))
    assert_close(queue.rows, torch.tensor([[1.0, 2.0], [0, 0], [0, 0]]))


def test_the_buffer_is_the_same_tensor():
    """NonFiniteHook remembers it and puts it back."""
    queue = EmbeddingQueue(3, 2)
    buffer = queue.rows
    queue.push(rows(1))
    assert queue.rows is buffer and buffer.any()


@pytest.mark.parametrize('rank', [0, 1, 2])
def test_each_rank_works_on_its_share(monkeypatch, rank):
    queue = EmbeddingQueue(7, 2)
    queue.push(rows(*range(1, 8)))
    monkeypatch.setattr('poa_mm.models.selfsup.embedding_queue.get_rank', lambda: rank)
    monkeypatch.setattr('poa_mm.models.selfsup.embedding_queue.get_world_size', lambda: 3)
    assert queue.of_rank()[:, 0].tolist() == [[1, 4, 7], [2, 5], [3, 6]][rank]


@torch.no_grad()
def test_targets_are_balanced_over_the_batches_before(make_poa):
    """Embeddings of earlier batches go through the prototypes of the present."""
    model = make_poa(queue=12)
    teacher, seen = model.teacher['head'], []
    for seed in range(4):
        batch = MultiCropBatch.collate(**make_data(seed), mask_grid=(4, 4), masked=True)
        targets = model.teacher_targets(batch).of(0)
        embeddings = teacher.embed(model.teacher['backbone'].extract_features(batch.global_views).cls)
        seen = [embeddings, *seen][:3]  # this batch, and two in the queue
        for head, (prototypes, found) in enumerate(zip(teacher.matrices(), targets.cls)):
            together = torch.cat([one[head] for one in seen])
            expected = SinkhornKnopp()(together @ prototypes.T, model.teacher_temp)
            assert_close(found, expected[:6], rtol=1e-4, atol=1e-6)
        for prototypes in teacher.prototypes:  # the teacher moves on
            prototypes.weight.add_(0.1 * torch.randn_like(prototypes.weight))


@torch.no_grad()
def test_patches_have_no_queue(make_poa):
    """They are many in a batch already."""
    with_queue, without = make_poa(queue=60), make_poa()
    for seed in range(2):
        batch = MultiCropBatch.collate(**make_data(seed), mask_grid=(4, 4), masked=True)
        found, expected = with_queue.teacher_targets(batch).of(0), without.teacher_targets(batch)
        for mine, other in zip(found.patch, expected.patch):
            assert_close(mine, other, rtol=1e-4, atol=1e-6)
        same = [torch.allclose(mine, other, rtol=1e-3) for mine, other in zip(found.cls, expected.cls)]
        assert all(same) == (seed == 0)  # the first batch finds the queue empty


@pytest.mark.parametrize('micro_batches', [2, 3])
def test_in_pieces(make_poa, micro_batches):
    whole, pieces = make_poa(queue=18), make_poa(queue=18, micro_batches=micro_batches)
    for seed in range(4):
        expected, found = (model.loss(**make_data(seed)) for model in (whole, pieces))
        assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_queue_is_part_of_the_checkpoint(make_poa):
    model, other = make_poa(queue=10), make_poa(queue=10)
    for seed in range(3):
        model.loss(**make_data(seed))
    other.load_state_dict(model.state_dict())
    other.deck.load_state_dict(model.deck.state_dict())
    assert_close(other.loss(**make_data(3)), model.loss(**make_data(3)), rtol=0, atol=0)
    keys = set(model.state_dict()) - set(make_poa().state_dict())
    assert keys == {'queues.0.rows', 'queues.1.rows'}


def test_off_by_default(make_poa):
    assert make_poa().queues is None


def test_only_for_sinkhorn_knopp(make_poa):
    with pytest.raises(ValueError, match='queue 8 is for SinkhornKnopp; the centering is MeanCentering'):
        make_poa(queue=8, centering=dict(type='MeanCentering'))


@pytest.mark.parametrize('value', [-1, 2.0, None, True])
def test_a_length_that_is_none(make_poa, value):
    with pytest.raises(ValueError, match=f'queue {value!r} is not a whole number from 0 up'):
        make_poa(queue=value)
