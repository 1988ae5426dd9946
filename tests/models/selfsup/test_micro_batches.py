"""A batch in pieces gives what it gives as a whole."""

import pytest
import torch
from mmengine.registry import MODELS
from mmpretrain.structures import DataSample
from torch.testing import assert_close

from poa_mm.models import POA
from poa_mm.models.selfsup import targets
from poa_mm.models.selfsup.batch import MicroBatches, MultiCropBatch

VIT = dict(
    type='ElasticVisionTransformer',
    arch=dict(embed_dims=32, num_layers=3, num_heads=4, feedforward_channels=64),
    widths=[16, 24, 32],
    depths=[2, 3],
    img_size=32,
    patch_size=8,
    layer_scale_init_value=0.5,
)
HEAD = dict(type='MultiPrototypeHead', num_prototypes=[16, 32], hidden_channels=32, bottleneck_channels=16)


def make_data(num_images=6, num_local=2, size=32, grid=(4, 4)):
    """Views, and masks that differ in number; some crops have none."""
    generator = torch.Generator().manual_seed(1)
    sizes = [size] * 2 + [size // 2] * num_local
    inputs = [torch.randn(num_images, 3, side, side, generator=generator) for side in sizes]
    share = torch.linspace(0, 0.7, num_images).view(-1, 1, 1, 1)
    masks = torch.rand(num_images, 2, *grid, generator=generator) < share
    return dict(inputs=inputs, data_samples=[DataSample(mask=mask) for mask in masks])


@pytest.fixture(scope='module')
def step(randomise):
    """What ``steps`` steps give: the losses of the last one, and all gradients, added up."""

    def run(data, micro_batches, steps=1, autocast=None, prepare=None, backbone=None, **options):
        torch.manual_seed(0)
        backbone = backbone if backbone and 'type' in backbone else VIT | (backbone or {})
        model = randomise(POA(backbone=backbone, head=HEAD, micro_batches=micro_batches, **options))
        model.train()
        if prepare:
            prepare(model)
        for _ in range(steps):
            with torch.autocast('cpu', dtype=autocast, enabled=autocast is not None):
                losses = model.loss(**data)
            losses['loss'].backward()
        grads = {name: param.grad for name, param in model.named_parameters() if param.grad is not None}
        return losses, grads, model

    return run


def assert_same(found, expected, rtol=1e-5):
    """Losses one by one, gradients by the norm of each parameter's."""
    (losses, grads, model), (expected_losses, expected_grads, expected_model) = found, expected
    assert losses.keys() == expected_losses.keys()
    for name, value in expected_losses.items():
        assert_close(losses[name], value, rtol=rtol, atol=rtol, msg=lambda text, name=name: f'{name}: {text}')
    assert grads.keys() == expected_grads.keys()
    total = torch.stack([grad.norm() for grad in expected_grads.values()]).norm()
    for name, expected in expected_grads.items():
        assert (grads[name] - expected).norm() <= rtol * (expected.norm() + 1e-3 * total), name
    for (name, buffer), expected in zip(model.named_buffers(), expected_model.buffers()):
        assert_close(buffer, expected, rtol=rtol, atol=rtol, msg=lambda text, name=name: f'{name}: {text}')


@pytest.mark.parametrize('micro_batches', [2, 3, 4, 6, 10])
def test_any_number_of_pieces(step, micro_batches):
    """Of 6 images: 4 pieces are unequal, 10 are as many as there are images."""
    data = make_data()
    assert_same(step(data, micro_batches), step(data, 1))


OPTIONS = {
    'mean centring': dict(centering=dict(type='MeanCentering', momentum=0.5), steps=3),
    'without L_IS': dict(weight_is=0),
    'same view alone': dict(weight_is=0, weight_es1=0),
    'without L_ES2': dict(weight_es2=0),
    'intact student alone': dict(weight_es1=0, weight_es2=0),
    'without patch loss': dict(patch_weight=0),
    'without KoLeo': dict(koleo_weight=0),
    'stochastic depth': dict(backbone=dict(drop_path_rate=0.4), steps=2),
    'stochastic depth, without L_IS': dict(backbone=dict(drop_path_rate=0.4), weight_is=0),
    'checkpointed': dict(backbone=dict(drop_path_rate=0.4, with_cp=True)),
    'three iterations': dict(centering=dict(type='SinkhornKnopp', iterations=1)),
}


@pytest.mark.parametrize('options', OPTIONS.values(), ids=OPTIONS)
def test_with(step, options):
    data = make_data()
    assert_same(step(data, 4, **options), step(data, 1, **options))


def test_without_local_crops_and_masks(step):
    data = make_data(num_local=0)
    for sample in data['data_samples']:
        sample.mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    assert_same(step(data, 4), step(data, 1))


def test_before_the_patch_loss_starts(step):
    def no_patches(model):
        model.patch_loss_active = False

    data = make_data()
    assert_same(step(data, 3, prepare=no_patches), step(data, 1, prepare=no_patches))


def test_frozen_prototypes(step):
    def freeze(model):
        model.head.prototypes.requires_grad_(False)

    data = make_data()
    found, expected = step(data, 4, prepare=freeze), step(data, 1, prepare=freeze)
    assert_same(found, expected)
    assert not any('prototypes' in name for name in found[1])


@pytest.mark.parametrize('family', ['swin', 'resnet'])
def test_families(step, supernets, family):
    data = make_data(size=64, num_images=5)
    drop = dict(drop_path_rate=0.3) if family == 'swin' else {}
    assert_same(*(step(data, pieces, backbone=supernets[family] | drop) for pieces in (2, 1)), rtol=5e-5)


@pytest.mark.parametrize('loss_scale', [1.0, 2.0**10])
def test_half_precision(step, loss_scale):
    """Pieces round otherwise than the whole, so both are held against float32; scaling changes nothing."""

    def scale(model):
        model.loss_scale = torch.tensor(loss_scale)

    data = make_data()
    (losses, grads, _), (whole, whole_grads, _), (_, exact, _) = (
        step(data, pieces, autocast=autocast, prepare=scale)
        for pieces, autocast in ((4, torch.bfloat16), (1, torch.bfloat16), (1, None))
    )
    assert_close(losses['loss'], whole['loss'], rtol=2e-3, atol=0)
    assert grads.keys() == whole_grads.keys() == exact.keys()

    def error(found):
        return sum((found[name] - exact[name]).square().sum() for name in exact).sqrt()

    assert 0 < error(grads) < 1.5 * error(whole_grads)


def test_small_gradients_of_koleo_are_scaled(step):
    """What is known of KoLeo ahead goes through the networks with the scale of everything else."""

    def scale(model):
        model.loss_scale = torch.tensor(2.0**10)

    data = make_data()
    options = dict(koleo_weight=1000.0)
    assert_same(step(data, 3, prepare=scale, **options), step(data, 1, **options))


def test_each_piece_is_stacked_when_its_turn_comes():
    inputs, samples = make_data(num_images=7).values()
    batch = MicroBatches(inputs, samples, (4, 4), masked=True, number=3)
    pieces = list(batch.pieces())
    assert [piece.num_images for piece in pieces] == [2, 2, 3] and batch.num_pieces == 3
    assert [piece.first for piece in pieces] == [0, 2, 4] and {piece.whole for piece in pieces} == {7}
    whole = MultiCropBatch.collate(inputs, samples, (4, 4), masked=True)
    for size, views in (('global', 'global_views'), ('local', 'local_views')):
        places = torch.cat([piece.part(size).places for piece in pieces])
        assert {piece.part(size).total for piece in pieces} == {len(places)} == {whole.whole_rows(size)}
        assert torch.equal(torch.cat([getattr(piece, views) for piece in pieces]), getattr(whole, views)[places])
    assert whole.part('global') is None
    assert_close(sum(piece.mask_shares.sum() for piece in pieces), whole.mask_shares.sum())
    assert len(list(batch.pieces(1))) == 2


@pytest.mark.parametrize('number', [0, 5, 7])
def test_samples_that_do_not_fit_the_images(number):
    inputs, samples = make_data().values()
    with pytest.raises(ValueError, match=f'6 data samples with a mask are needed.* got {number}'):
        MicroBatches(inputs, (samples + samples)[:number], (4, 4), masked=True, number=2)


@pytest.mark.parametrize('value', [0, -1, 1.5, '4', True])
def test_a_number_of_pieces_that_is_none(value):
    with pytest.raises(ValueError, match=f'micro_batches {value!r} is not a whole number from 1 up'):
        POA(backbone=VIT, head=HEAD, micro_batches=value)


def test_a_centring_that_cannot(monkeypatch):
    class Plain(torch.nn.Module):
        def __init__(self, num_prototypes):
            super().__init__()

    monkeypatch.setitem(MODELS.module_dict, 'Plain', Plain)
    POA(backbone=VIT, head=HEAD, centering=dict(type='Plain'))
    with pytest.raises(ValueError, match='micro_batches 2 needs a centering with shift'):
        POA(backbone=VIT, head=HEAD, centering=dict(type='Plain'), micro_batches=2)


def test_the_targets_of_a_piece_exist_at_a_time(step, monkeypatch):
    """At no time are there targets of more rows than those of a piece."""
    rows = []
    real = targets.centred
    monkeypatch.setattr(
        targets, 'centred', lambda embeddings, *args: rows.append(len(embeddings)) or real(embeddings, *args)
    )
    data = make_data()
    step(data, 6)
    most = max(int(sample.mask.sum()) for sample in data['data_samples'])
    assert max(rows) == most and 2 in rows
