"""Two ranks with half of the batch each compute what one rank computes with the whole."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.registry import MODELS
from mmpretrain.structures import DataSample
from torch.testing import assert_close

CONFIG = dict(
    type='POA',
    backbone=dict(
        type='ElasticVisionTransformer',
        arch=dict(embed_dims=32, num_layers=3, num_heads=4, feedforward_channels=64),
        widths=[16, 24, 32],
        depths=[2, 3],
        img_size=32,
        patch_size=8,
        layer_scale_init_value=0.5,
    ),
    head=dict(type='MultiPrototypeHead', num_prototypes=[16, 32], hidden_channels=32, bottleneck_channels=16),
    koleo_weight=0.0,  # on purpose per rank: neighbours are sought among the rank's images
    deck=dict(sync=True),
)


def make_batch():
    """Views and masks of 6 images, different numbers of masked patches in each half."""
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(6, 3, size, size, generator=generator) for size in (32, 32, 16, 16)]
    masks = torch.rand(6, 2, 4, 4, generator=generator) < torch.linspace(0, 0.6, 6).view(6, 1, 1, 1)
    return views, masks


def two_steps(rank, world_size, options):
    torch.manual_seed(0)
    import poa_mm  # noqa: F401  registers the model in a spawned process

    model = MODELS.build(CONFIG | options)
    model.init_weights()
    model.train()
    views, masks = make_batch()
    part = slice(rank * 6 // world_size, (rank + 1) * 6 // world_size)
    for _ in range(2):  # a queue has something in the second one
        model.zero_grad()
        losses = model.loss([view[part] for view in views], [DataSample(mask=mask) for mask in masks[part]])
        losses['loss'].backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return losses['loss'].detach(), grads


def worker(rank, world_size, folder, options):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', f'file://{folder}/init', rank=rank, world_size=world_size)
    loss, grads = two_steps(rank, world_size, options)
    for value in (loss, *grads.values()):  # what DDP does
        dist.all_reduce(value)
        value /= world_size
    if rank == 0:
        torch.save((loss, grads), f'{folder}/result.pth')
    dist.barrier()  # and no destroy_process_group, which may hang with gloo on torch 2.1


MEAN = dict(centering=dict(type='MeanCentering'))
# Options of both ranks, and the largest error of a gradient by its norm.
OPTIONS = {
    'Sinkhorn-Knopp': (dict(), 2e-6),
    'in pieces, with a queue': (dict(micro_batches=2, queue=36), 1e-5),  # three batches of both ranks
    'mean centring': (MEAN, 2e-6),
    'in pieces': (dict(micro_batches=2), 1e-5),
    'in pieces, mean centring': (dict(micro_batches=2) | MEAN, 1e-5),
}


@pytest.mark.parametrize(
    'options',
    [pytest.param(name, marks=[pytest.mark.slow] if number > 1 else []) for number, name in enumerate(OPTIONS)],
)
def test_loss_and_gradients_of_two_ranks(tmp_path, options):
    options, tolerance = OPTIONS[options]
    mp.spawn(worker, (2, str(tmp_path), options), nprocs=2)
    loss, grads = torch.load(tmp_path / 'result.pth')
    expected_loss, expected_grads = two_steps(0, 1, options | dict(micro_batches=1))
    assert_close(loss, expected_loss, rtol=1e-5, atol=1e-5)
    assert grads.keys() == expected_grads.keys()
    for name, expected in expected_grads.items():
        # By norm: these gradients reach 745, so rounding alone moves entries near 0 by more than an absolute 1e-6.
        assert (grads[name] - expected).norm() <= tolerance * expected.norm(), name
