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


def one_step(rank, world_size, centering):
    torch.manual_seed(0)
    import poa_mm  # noqa: F401  registers the model in a spawned process

    model = MODELS.build(dict(CONFIG, centering=centering))
    model.init_weights()
    model.train()
    views, masks = make_batch()
    part = slice(rank * 6 // world_size, (rank + 1) * 6 // world_size)
    losses = model.loss([view[part] for view in views], [DataSample(mask=mask) for mask in masks[part]])
    losses['loss'].backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return losses['loss'].detach(), grads


def worker(rank, world_size, folder, centering):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', f'file://{folder}/init', rank=rank, world_size=world_size)
    loss, grads = one_step(rank, world_size, centering)
    for value in (loss, *grads.values()):  # what DDP does
        dist.all_reduce(value)
        value /= world_size
    if rank == 0:
        torch.save((loss, grads), f'{folder}/result.pth')
    dist.barrier()  # and no destroy_process_group, which may hang with gloo on torch 2.1


@pytest.mark.parametrize('centering', ['SinkhornKnopp', pytest.param('MeanCentering', marks=pytest.mark.slow)])
def test_loss_and_gradients_of_two_ranks(tmp_path, centering):
    centering = dict(type=centering)
    mp.spawn(worker, (2, str(tmp_path), centering), nprocs=2)
    loss, grads = torch.load(tmp_path / 'result.pth')
    expected_loss, expected_grads = one_step(0, 1, centering)
    assert_close(loss, expected_loss, rtol=1e-5, atol=1e-5)
    assert grads.keys() == expected_grads.keys()
    for name, expected in expected_grads.items():
        # By norm: these gradients reach 745, so rounding alone moves entries near 0 by more than an absolute 1e-6.
        assert (grads[name] - expected).norm() <= 2e-6 * expected.norm(), name
