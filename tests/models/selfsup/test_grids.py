"""A student of another patch size than the teacher's: which regions of the image meet which targets."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmpretrain.structures import DataSample
from torch.testing import assert_close

from poa_mm.datasets.transforms import BlockMask
from poa_mm.elastic import Subnet, SubnetSpace
from poa_mm.models import POA
from poa_mm.models.selfsup.batch import MultiCropBatch
from poa_mm.models.selfsup.grids import change_grid, check_crops

SIDE = 84  # pixels of an image that 2, 3, 4, 6, 7, 12 patches divide


def pixels(mask):
    """Of which pixels a mask ``(rows, columns)`` is made, ``(SIDE, SIDE)``."""
    return mask.repeat_interleave(SIDE // mask.shape[0], 0).repeat_interleave(SIDE // mask.shape[1], 1)


@pytest.mark.parametrize('native', [(4, 4), (2, 6), (7, 3)], ids=str)
@pytest.mark.parametrize('grid', [(2, 2), (4, 4), (4, 12), (7, 7), (12, 6), (1, 1), (28, 21)], ids=str)
def test_a_patch_is_masked_where_all_of_it_is(native, grid):
    """By counting pixels, whatever the two grids are."""
    masks = torch.rand(20, *native) < torch.linspace(0, 1, 20)[:, None, None]
    change = change_grid(masks.flatten(1), native, grid)
    for mask, found, covered in zip(masks, change.masks.unflatten(1, grid), change.covered.unflatten(1, native)):
        whole = pixels(mask)
        cells = whole.view(grid[0], SIDE // grid[0], grid[1], SIDE // grid[1])
        assert torch.equal(found, cells.transpose(1, 2).flatten(2).all(dim=2))
        assert not (pixels(found) & ~whole).any()  # nothing is hidden that the intact student sees
        parts = pixels(found).float().view(native[0], SIDE // native[0], native[1], SIDE // native[1])
        assert_close(covered, parts.mean(dim=(1, 3)))


def samples(native, batch=6):
    """Masks of which those of the first image are empty and whole."""
    masks = torch.rand(batch, 2, *native) < 0.6
    masks[0, 0], masks[0, 1] = False, True
    return [DataSample(mask=mask) for mask in masks]


def collate(native, batch=6):
    views = [torch.zeros(batch, 1, SIDE, SIDE)] * 2
    return MultiCropBatch.collate(views, samples(native, batch), native, masked=True)


@pytest.mark.parametrize('native, grid', [((4, 4), (2, 2)), ((4, 4), (12, 12)), ((4, 4), (7, 7)), ((7, 3), (4, 6))])
def test_rows_are_those_of_the_targets(native, grid):
    """Each row is the mean of the masked patches that lie in its native patch, pixel by pixel."""
    batch = collate(native)
    other = batch.on_grid(grid, native)
    assert torch.equal(other.masked, batch.masked)
    patches = torch.randn(12, grid[0] * grid[1], 5)
    rows = other.masked_of(patches)
    assert rows.shape == (batch.masked.shape[1], 5)
    for row, share, (view, cell) in zip(rows, other.mask_shares, batch.masked.T.tolist()):
        inside = torch.zeros(native[0] * native[1], dtype=torch.bool)
        inside[cell] = True
        hidden = pixels(other.masks[view].view(grid)) & pixels(inside.view(native))
        values = pixels(torch.arange(grid[0] * grid[1]).view(grid))[hidden]  # number of a patch for each hidden pixel
        if not len(values):
            assert share == 0 and row.isfinite().all()
        else:
            assert share > 0
            assert_close(row, patches[view, values].mean(dim=0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('native, grid', [((4, 4), (2, 2)), ((4, 4), (12, 12)), ((4, 4), (7, 7)), ((7, 3), (4, 6))])
def test_every_view_counts_the_same(native, grid):
    batch = collate(native)
    other = batch.on_grid(grid, native)
    shares = torch.zeros(12, native[0] * native[1]).index_put(tuple(batch.masked), other.mask_shares)
    expected = other.masks.any(dim=1).float() / 12
    assert_close(shares.sum(dim=1), expected)
    # In a view, as much as the area that is hidden.
    for row, covered in zip(shares, other.grid_change.covered):
        assert_close(row * covered.sum(), covered * row.sum())


def test_small_patches_of_whole_native_ones_are_exact():
    batch = collate((4, 4))
    other = batch.on_grid((12, 12), (4, 4))
    assert torch.equal(other.masks.sum(dim=1), 9 * batch.masks.sum(dim=1))
    assert torch.equal(other.mask_shares, batch.mask_shares)


def test_large_patches_of_whole_native_ones_repeat_themselves():
    batch = collate((4, 4))
    other = batch.on_grid((2, 2), (4, 4))
    patches = torch.randn(12, 4, 5)
    whole = patches.view(12, 2, 2, 5).repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1, 2)
    counts = other.mask_shares > 0
    assert counts.any() and not counts.all()
    assert torch.equal(other.masked_of(patches)[counts], batch.masked_of(whole)[counts])


@pytest.mark.parametrize(
    ('native', 'grid', 'hidden', 'kept'), [(14, 7, 0.19, 0.99), (14, 28, 0.29, 1.0), (4, 2, 0.04, 0.15)]
)
def test_what_large_patches_hide_of_the_masks_of_recipes(native, grid, hidden, kept):
    """The numbers of docs/pretraining.md: the share of masked crops that is hidden, and of those that keep a loss."""
    np.random.seed(0)
    draw = BlockMask(grid=native, prob=1.0, min_patches=4 if native == 14 else 1)
    masks = torch.from_numpy(np.concatenate([draw({})['mask'] for _ in range(1000)])).flatten(1)
    change = change_grid(masks[masks.any(dim=1)], (native, native), (grid, grid))
    assert_close(change.masks.float().mean().item(), hidden, rtol=0, atol=0.015)
    assert_close(change.masks.any(dim=1).float().mean().item(), kept, rtol=0, atol=0.03)


def test_the_native_grid_changes_nothing():
    batch = collate((4, 4))
    assert batch.on_grid((4, 4), (4, 4)) is batch


def test_without_masks_there_is_nothing_to_meet():
    views = [torch.zeros(3, 1, SIDE, SIDE)] * 2
    other = MultiCropBatch.collate(views, None, (4, 4), masked=False).on_grid((7, 7), (4, 4))
    assert other.masks.shape == (6, 49) and not other.masks.any()
    assert other.masked_of(torch.randn(6, 49, 5)).shape == (0, 5) and other.mask_shares.shape == (0,)


def test_rows_that_nothing_covers_give_no_nan():
    batch = collate((4, 4))
    other = batch.on_grid((1, 1), (4, 4))  # masked as a whole, or not at all
    patches = torch.randn(12, 1, 5, requires_grad=True)
    loss = (torch.nn.functional.normalize(other.masked_of(patches)).sum(dim=1) * other.mask_shares).sum()
    loss.backward()
    assert patches.grad.isfinite().all()
    assert torch.equal(patches.grad.abs().sum(dim=(1, 2)) > 0, other.masks[:, 0])


# --- in a step ---

BACKBONE = dict(
    type='ElasticVisionTransformer',
    arch=dict(embed_dims=32, num_layers=2, num_heads=4, feedforward_channels=64),
    widths=(16, 32),
    depths=(1, 2),
    img_size=64,
    patch_size=16,
    patch_sizes=(8, 16, 32),
)
HEAD = dict(type='MultiPrototypeHead', num_prototypes=(16, 24), hidden_channels=24, bottleneck_channels=8)


@pytest.fixture(scope='module')
def model(randomise):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = randomise(POA(backbone=BACKBONE, head=HEAD))
    return model.train()


def data(num_images=3, size=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(num_images, 3, size, size, generator=generator) for _ in range(2)]
    inputs += [torch.randn(num_images, 3, size // 2, size // 2, generator=generator) for _ in range(2)]
    masks = torch.zeros(num_images, 2, 4, 4, dtype=torch.bool)
    masks[1:, :, :2, :3] = True  # one large patch of four, and two halves
    return dict(inputs=inputs, data_samples=[DataSample(mask=mask) for mask in masks])


def step(model, subnet, **kwargs):
    model.deck = SimpleNamespace(deal=lambda: subnet)
    model.zero_grad()
    losses = model.loss(**data(**kwargs))
    losses['loss'].backward()
    return losses, {name: param.grad for name, param in model.named_parameters() if param.grad is not None}


def test_every_patch_size_learns_and_leaves_the_others_alone(model):
    """Teacher and intact student, and so what they lose, are the same whatever the elastic student is dealt."""
    found = {patch: step(model, Subnet(16, 2, patch)) for patch in (None, 8, 32)}
    for name in ('L_IS', 'L_IS_global', 'L_IS_local', 'L_IS_patch', 'teacher_entropy_16'):
        for patch in (8, 32):
            assert torch.equal(found[patch][0][name], found[None][0][name])
    for losses, grads in found.values():
        assert all(loss.isfinite() for loss in losses.values())
        assert all(losses[name] > 0 for name in ('L_ES1_global', 'L_ES1_local', 'L_ES1_patch', 'L_ES2_local'))
        assert all(grad.isfinite().all() for grad in grads.values())
    assert len({round(losses['L_ES1_patch'].item(), 5) for losses, _ in found.values()}) == 3


def test_the_patch_loss_is_that_of_the_regions_by_hand(model):
    """Of large patches: each one that is masked learns the mean of the targets of the four that it is made of."""
    subnet = Subnet(32, 2, 32)
    inputs, samples = data()['inputs'], data()['data_samples']
    batch = MultiCropBatch.collate(inputs, samples, (4, 4), masked=True)
    targets = model.teacher_targets(batch)
    with torch.no_grad():
        _, terms = model.loss_terms(batch, targets, subnet)
    mask = torch.zeros(6, 4, dtype=torch.bool)
    mask[[1, 2, 4, 5], 0] = True  # the upper left one, in both views of the second and the third image
    _, patches = model.backbone.extract_features(batch.global_views, subnet, mask)
    embeddings = model.head.embed(patches[mask])
    cells = [0, 1, 4, 5]
    for head, (rows, prototypes) in enumerate(zip(embeddings, model.head.matrices())):
        dense = torch.zeros(6, 16, targets.patch[head].shape[1])
        dense[batch.masked[0], batch.masked[1]] = targets.patch[head]
        logs = (rows @ prototypes.T / model.student_temp).log_softmax(dim=1)
        expected = -(dense[[1, 2, 4, 5]][:, cells].mean(dim=1) * logs).sum(dim=1).sum() / 6
        assert_close(terms['L_ES1_patch'][head], expected)


def test_deck_of_a_run_deals_patch_sizes(randomise):
    model = POA(backbone=BACKBONE, head=HEAD, deck=dict(sync=True))
    dealt = {model.deck.deal() for _ in range(len(model.deck))}
    assert dealt == set(model.backbone.space) - {model.backbone.space.largest}
    state = json.loads(json.dumps(model.deck.state_dict()))
    other = POA(backbone=BACKBONE, head=HEAD, deck=dict(sync=True)).deck
    other.load_state_dict(state)
    assert [other.deal() for _ in range(9)] == [model.deck.deal() for _ in range(9)]


@pytest.mark.parametrize('size', [48, 56])
def test_crops_that_are_no_whole_patches_are_refused_at_the_first_step(model, size):
    """Whatever is dealt: the size that does not fit may come much later."""
    patch = 32 if size == 48 else 16
    with pytest.raises(
        ValueError, match=rf'crops of {size} x {size} pixels and patches of {patch} x {patch} do not fit'
    ):
        step(model, Subnet(16, 1), size=size)


def test_local_crops_are_looked_at_too():
    space = SubnetSpace([16], [1], patches=(8, 16, 32), native=16)
    views = [torch.zeros(1, 3, 64, 64)] * 2
    check_crops([*views, torch.zeros(1, 3, 32, 32)], space)
    with pytest.raises(ValueError, match='crops of 24 x 32 pixels and patches of 16 x 16 do not fit'):
        check_crops([*views, torch.zeros(1, 3, 24, 32)], space)
    check_crops([*views, torch.zeros(1, 3, 24, 33)], SubnetSpace([16], [1], native=16))


@pytest.mark.parametrize('patch', [8, 32])
def test_micro_batches_give_the_same(model, randomise, patch):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pieces = randomise(POA(backbone=BACKBONE, head=HEAD, micro_batches=3)).train()
    pieces.load_state_dict(model.state_dict())
    whole, whole_grads = step(model, Subnet(16, 2, patch))
    parts, part_grads = step(pieces, Subnet(16, 2, patch))
    assert parts['L_ES1_patch'] > 0
    assert_close(dict(parts), dict(whole), rtol=1e-4, atol=1e-5)
    assert_close(part_grads, whole_grads, rtol=1e-3, atol=1e-5)
