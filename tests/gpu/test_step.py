"""A step computes the authors' numbers on a GPU, and nearly those in half precision."""

import pytest
import torch
from mmpretrain.structures import DataSample
from torch.testing import assert_close

from poa_mm.deploy.public_checkpoint import convert_public_state_dict
from poa_mm.elastic import Subnet
from poa_mm.models.selfsup.batch import MultiCropBatch

GOLDEN = dict(
    type='ElasticVisionTransformer',
    arch=dict(embed_dims=64, num_layers=4, num_heads=4, feedforward_channels=256),
    widths=(32, 48, 64),
    depths=(2, 3, 4),
    img_size=64,
    layer_scale_init_value=0.5,
)
SUBNETS = dict(vit=Subnet(48, 3), swin=Subnet(24, 3), resnet=Subnet(8, (3, 3, 6, 3)))
# Largest relative error of all gradients together, by their norm: three times what autocast on a CPU gives or more, far
# below what a term too many or too few would. Rounding flips the signs that ReLU cuts at, so a ResNet's is the largest.
BOUNDS = {
    torch.bfloat16: dict(vit=0.05, swin=0.1, resnet=0.7),
    torch.float16: dict(vit=0.01, swin=0.02, resnet=0.3),
}


@pytest.fixture
def golden_step(golden, make_poa):
    """The model with the public weights, its views and samples, and what the authors' code computes from them."""

    def make(device):
        tensors, info = golden('vit_step')
        model = make_poa(device, backbone=GOLDEN, teacher_temp=info['teacher_temp'])
        state = {}
        for branch, prefix in (('student', ''), ('teacher', 'teacher.')):
            public = {name[8:]: value for name, value in tensors.items() if name.startswith(f'{branch}.')}
            state |= {f'{prefix}{name}': value for name, value in convert_public_state_dict(public).items()}
        model.load_state_dict(state, strict=True)
        views = [*tensors['batch.collated_global_crops'].chunk(2), *tensors['batch.collated_local_crops'].chunk(2)]
        masks = tensors['batch.collated_masks'].view(2, 4, 4, 4)
        return model, views, [DataSample(mask=masks[:, image]) for image in range(4)], tensors, info['networks']

    return make


@pytest.mark.parametrize('name', ['32x2.ibot=1', '48x3.ibot=0'])
def test_golden_step(golden_step, device, name):
    model, views, samples, tensors, networks = golden_step(device)
    expected, (subnet, patch_loss) = networks[name], name.split('.ibot=')
    model.patch_loss_active = patch_loss == '1'
    subnet = Subnet.parse(subnet)
    views = [view.to(device) for view in views]
    batch = MultiCropBatch.collate(views, samples, (4, 4), masked=model.patch_loss_active)
    total, terms = model.loss_terms(batch, model.teacher_targets(batch), subnet)
    total.backward()
    assert_close(total.item(), expected['total'], rtol=1e-4, atol=0)
    distilled = {f'distill_{v}_crops_loss_{h}': terms[f'L_ES2_{v}'][h] for v in ('global', 'local') for h in range(2)}
    assert_close(
        {n: v.item() for n, v in distilled.items()}, {n: expected['terms'][n] for n in distilled}, rtol=1e-4, atol=0
    )
    params = dict(model.named_parameters())
    for public, norm in expected['grad_norm'].items():
        (ours,) = convert_public_state_dict({public: tensors[f'student.{public}']})
        assert_close(
            params[ours].grad.norm().item(), norm, rtol=1e-3, atol=1e-6, msg=lambda text, n=public: f'{n}: {text}'
        )


@torch.no_grad()
def test_golden_features(golden_step, device):
    model, *_, tensors, _ = golden_step(device)
    backbone = model.teacher['backbone']
    for subnet in backbone.space:
        found = backbone.extract_features(tensors['batch.collated_global_crops'].to(device), subnet)
        for value, name in zip(found, ('cls', 'patch')):
            assert_close(value.cpu(), tensors[f'features.{subnet}.global.{name}'], rtol=0, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize('family', SUBNETS)
def test_the_gpu_computes_what_the_cpu_computes(make_poa, raw_batch, loss_and_gradients, family):
    (losses, grads), (expected, expected_grads) = (
        whole_step(make_poa(device, family), raw_batch, loss_and_gradients, SUBNETS[family])
        for device in ('cuda', 'cpu')
    )
    assert_close(losses, expected, rtol=1e-4, atol=1e-5)
    assert grads.keys() == expected_grads.keys()
    assert relative_error(grads, expected_grads) < 1e-3


@pytest.mark.parametrize('dtype', BOUNDS, ids=str)
@pytest.mark.parametrize('family', SUBNETS)
def test_half_precision(make_poa, raw_batch, loss_and_gradients, device, family, dtype):
    if device.type == 'cpu' and dtype == torch.float16 and torch.__version__ < (2, 3):
        pytest.skip('no float16 autocast on the CPU before torch 2.3')
    found = []
    for precision in (dtype, None):
        model = make_poa(device, family)
        if precision == torch.float16:
            model.loss_scale = 1024.0
        found.append(whole_step(model, raw_batch, loss_and_gradients, SUBNETS[family], precision))
    (losses, grads), (expected, expected_grads) = found
    assert_close(losses['loss'], expected['loss'], rtol=2e-3, atol=0)
    assert grads.keys() == expected_grads.keys()
    assert all(grad.isfinite().all() for grad in grads.values())
    error = relative_error(grads, expected_grads)
    assert 0 < error < BOUNDS[dtype][family], error  # at 0, nothing was computed in half precision


@pytest.mark.parametrize('patch', [8, 32])
def test_patches_of_other_sizes(make_poa, raw_batch, loss_and_gradients, device, patch):
    """In float32 what the CPU computes, in half precision nearly that; weights are resized in float32."""
    found = []
    for place, dtype in ((torch.device('cpu'), None), (device, None), (device, torch.bfloat16)):
        model = make_poa(place, backbone=dict(patch_sizes=[8, 16, 32]))
        found.append(whole_step(model, raw_batch, loss_and_gradients, Subnet(48, 3, patch), dtype))
    (expected, expected_grads), *others = found
    assert patch == 32 or expected['L_ES1_patch'] > 0  # no four neighbours are masked here
    for (losses, grads), tolerance, bound in zip(others, (1e-4, 2e-3), (1e-3, BOUNDS[torch.bfloat16]['vit'])):
        assert_close(losses['loss'], expected['loss'], rtol=tolerance, atol=0)
        assert grads.keys() == expected_grads.keys()
        assert relative_error(grads, expected_grads) < bound


@pytest.mark.parametrize('family', SUBNETS)
def test_checkpointed_blocks_compute_the_same(make_poa, raw_batch, loss_and_gradients, device, family):
    drop = dict(drop_path_rate=0.3) if family != 'resnet' else {}
    (losses, grads), (expected, expected_grads) = (
        whole_step(make_poa(device, family, options), raw_batch, loss_and_gradients, SUBNETS[family])
        for options in (drop | dict(with_cp=True), drop)
    )
    assert_close(losses, expected)
    assert grads.keys() == expected_grads.keys()
    assert relative_error(grads, expected_grads) < 1e-5


def whole_step(model, raw_batch, loss_and_gradients, subnet, dtype=None):
    batch = raw_batch(model)
    views = [(view.float() - 128) / 64 for view in batch['inputs']]
    return loss_and_gradients(model, views, batch['data_samples'], subnet, dtype)


def relative_error(found, expected):
    """Of all tensors together."""
    difference, norm = (
        torch.stack([value.square().sum() for value in values]).sum().sqrt()
        for values in ([found[name] - expected[name] for name in expected], expected.values())
    )
    return (difference / norm).item()
