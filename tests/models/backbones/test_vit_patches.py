"""Patches of several sizes in one vision transformer."""

import copy

import pytest
import torch
from mmengine.registry import MODELS
from mmpretrain.models.backbones import VisionTransformer
from mmpretrain.models.utils.attention import scaled_dot_product_attention_pyimpl
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from poa_mm.compat import is_at_least
from poa_mm.elastic import Subnet, resize_patches

SIZES = (8, 16, 32)
NO_FLOAT16 = not is_at_least('torch', '2.3')


@pytest.fixture(scope='module')
def network(elastic_vit):
    return elastic_vit(patch_sizes=SIZES)


def stock(network, subnet):
    """The plain network that ``subnet`` is extracted to, loaded strictly."""
    config, state = network.extract(subnet)
    assert config.pop('type') == 'VisionTransformer'
    plain = VisionTransformer(**config)
    plain.load_state_dict(state, strict=True)
    plain.eval()
    return plain


OPTIONS = {
    'plain': {},
    'oblong images': dict(img_size=(32, 96)),
    'grey': dict(in_channels=1),
    '13 bands': dict(in_channels=13),
    'without class token': dict(with_cls_token=False, out_type='featmap'),
    'mean of patches': dict(out_type='avg_featmap'),
    'norm before the blocks': dict(pre_norm=True),
    'bilinear': dict(interpolate_mode='bilinear'),
    'native patches are the smallest': dict(patch_size=8),
    'native patches are the largest': dict(patch_size=32),
    'sizes that do not nest': dict(img_size=84, patch_size=12, patch_sizes=[12, 14, 21]),
}


@pytest.mark.parametrize('options', OPTIONS.values(), ids=OPTIONS)
@torch.no_grad()
def test_every_extracted_patch_size_gives_the_same(elastic_vit, options):
    network = elastic_vit(**{'patch_sizes': SIZES, **options})
    sizes = network.space.patch_sizes
    for patch in network.space.patches:
        subnet = Subnet(48, 3, patch)
        plain = stock(network, subnet)
        pixels = (patch or network.patch_size[0],) * 2
        assert tuple(plain.patch_embed.projection.kernel_size) == pixels and pixels[0] in sizes
        height, width = network.img_size
        for image_size in ((height, width), (2 * height, width), (height, 2 * width)):
            image = torch.randn(2, network.in_channels, *image_size)
            features = network.extract_features(image, subnet)
            assert features.patch.shape[1] == image_size[0] * image_size[1] // pixels[0] ** 2
            assert_close(network.plain_features(plain, image), features, rtol=1e-5, atol=1e-5)
        cost = network.cost(subnet)
        assert cost.params == sum(param.numel() for param in plain.parameters())


@torch.no_grad()
def test_the_native_size_is_what_it_was(elastic_vit, network):
    """To the last bit, and with the same weights."""
    alone = elastic_vit()
    assert set(alone.state_dict()) == set(network.state_dict())
    network.load_state_dict(alone.state_dict())
    image = torch.randn(2, 3, 64, 64)
    for subnet in alone.space:
        assert subnet in network.space
        for found, expected in zip(network.extract_features(image, subnet), alone.extract_features(image, subnet)):
            assert torch.equal(found, expected)
        assert network.extract(subnet)[0] == alone.extract(subnet)[0]
        assert network.cost(subnet) == alone.cost(subnet)
    assert network.space.largest == alone.space.largest == Subnet(64, 4)
    assert torch.equal(network(image, Subnet(32, 2, 16))[0], network(image, Subnet(32, 2))[0])


@torch.no_grad()
def test_enlarged_images_give_the_same_tokens(network):
    """Twice the image in patches of twice the size: what FlexiViT's resizing keeps."""
    image = torch.randn(2, 3, 64, 64)
    cells = F.unfold(image, 16, stride=16).transpose(1, 2).reshape(-1, 3, 16, 16)  # patches by themselves
    larger = F.interpolate(cells, size=(32, 32), mode='bilinear', antialias=True)
    embed = network.patch_embed
    tokens, _ = embed(cells, 48)
    found, grid = embed(larger, 48, 32)
    assert grid == (1, 1)
    assert_close(found, tokens, rtol=1e-4, atol=1e-4)


def test_one_projection_learns_from_all_sizes(elastic_vit):
    network = elastic_vit(patch_sizes=SIZES)
    for patch in (8, 32, None):
        network.zero_grad()
        network(torch.randn(2, 3, 64, 64), Subnet(32, 2, patch))[0].sum().backward()
        weight, positions = network.patch_embed.projection.weight.grad, network.pos_embed.grad
        assert (weight[:32] != 0).all() and (weight[32:] == 0).all()
        assert (positions[..., :32] != 0).all() and (positions[..., 32:] == 0).all()


@torch.no_grad()
def test_masks_lie_on_the_grid_of_the_patches(network):
    image = torch.randn(2, 3, 64, 64)
    for patch, cells in ((8, 64), (16, 16), (32, 4)):
        subnet = Subnet(48, 3, patch)
        rows, columns = network.mask_grid((64, 64), subnet)
        assert rows * columns == cells
        mask = torch.zeros(2, rows, columns, dtype=torch.bool)
        mask[:, 0, -1] = True
        hidden = image.clone()
        hidden[..., : 64 // rows, -64 // columns :] = 7.0
        first, second = (network.extract_features(x, subnet, mask.flatten(1)) for x in (image, hidden))
        assert_close(first, second)
        assert not torch.allclose(network.extract_features(hidden, subnet).cls, second.cls)
        with pytest.raises(ValueError, match='does not fit tokens'):
            network.extract_features(image, subnet, mask.flatten(1)[:, 1:])


@torch.no_grad()
def test_cost_follows_the_number_of_tokens(network):
    for patch, side in ((8, 64), (16, 64), (32, 64), (8, 96), (32, 128)):
        subnet = Subnet(48, 3, patch)
        plain = stock(network, subnet)
        for layer in plain.layers:  # whose products torch counts
            layer.attn.scaled_dot_product_attention = scaled_dot_product_attention_pyimpl
        with FlopCounterMode(display=False) as counter:
            plain(torch.zeros(1, 3, side, side))
        assert network.cost(subnet, side).flops == counter.get_total_flops()
    assert network.cost(Subnet(48, 3, 16)) == network.cost(Subnet(48, 3))
    assert network.cost(Subnet(48, 3, 8)).flops > 3 * network.cost(Subnet(48, 3)).flops


@pytest.mark.parametrize('patch', [8, 32])
def test_checkpointing_gives_the_same_to_the_last_bit(elastic_vit, patch):
    image, grads = torch.randn(2, 3, 64, 64), []
    for with_cp in (False, True):
        network = elastic_vit(patch_sizes=SIZES, with_cp=with_cp)
        network.extract_features(image, Subnet(48, 3, patch)).cls.square().sum().backward()
        grads.append({name: param.grad for name, param in network.named_parameters()})
    assert_close(*grads, rtol=0, atol=0)


@pytest.mark.parametrize(
    'dtype',
    [
        torch.bfloat16,
        pytest.param(torch.float16, marks=pytest.mark.skipif(NO_FLOAT16, reason='no float16 autocast on the CPU')),
    ],
)
def test_weights_are_resized_in_full_precision_under_autocast(network, dtype):
    image, seen = torch.randn(2, 3, 64, 64), []
    hook = network.patch_embed.register_forward_hook(lambda module, args, out: seen.append(out[0]))
    with torch.autocast('cpu', dtype=dtype):
        network.extract_features(image, Subnet(48, 3, 8))
    hook.remove()
    weight = resize_patches(network.patch_embed.projection.weight[:48], (8, 8))
    bias = network.patch_embed.projection.bias[:48]
    expected = F.conv2d(image.to(dtype).float(), weight.to(dtype).float(), bias.to(dtype).float(), 8)
    assert_close(seen[0].float(), expected.flatten(2).transpose(1, 2), rtol=2e-2, atol=2e-2)


def test_parameters_and_their_depths_are_those_of_one_patch_size(elastic_vit, network):
    alone = elastic_vit()
    names = [name for name, _ in network.named_parameters()]
    assert names == [name for name, _ in alone.named_parameters()]
    assert [network.get_layer_depth(name) for name in names] == [alone.get_layer_depth(name) for name in names]


def test_shapes_are_known_without_weights(network):
    """On the device meta, as a scorecard asks for sizes of files."""
    shapes = copy.deepcopy(network).to('meta')
    for subnet in (Subnet(32, 2, 8), Subnet(64, 4, 32), Subnet(48, 3)):
        expected, found = (source.extract(subnet)[1] for source in (network, shapes))
        assert {name: value.shape for name, value in found.items()} == {n: v.shape for n, v in expected.items()}
        assert shapes.extract_features(torch.zeros(2, 3, 64, 64, device='meta'), subnet).cls.shape == (2, subnet.width)
    with torch.no_grad():
        assert network.extract_features(torch.zeros(1, 3, 64, 64), Subnet(32, 2, 8)).cls.isfinite().all()


# --- mistakes ---


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(patch_sizes=(8, 32)), r'patch sizes \[8, 32\] must hold the native one, 16'),
        (dict(patch_sizes=(16, 24)), r'img_size of 64 x 64 pixels and patches of 24 x 24 do not fit'),
        (dict(img_size=(64, 72), patch_sizes=SIZES), r'img_size of 64 x 72 pixels and patches of 16 x 16 do not fit'),
        (dict(patch_size=(16, 8), patch_sizes=(8, 16)), r'need a square patch_size; it is \(16, 8\)'),
        (dict(patch_sizes=()), 'patch sizes must be distinct positive integers, at least one'),
        (dict(patch_sizes=(16, 16)), 'patch sizes must be distinct positive integers'),
        (dict(patch_sizes=(16, 0)), 'patch sizes must be distinct positive integers'),
        (dict(patch_sizes=(16, 8.0)), 'patch sizes must be distinct positive integers'),
    ],
)
def test_bad_patch_sizes_are_refused(elastic_vit, options, message):
    with pytest.raises(ValueError, match=message):
        elastic_vit(**options)


@pytest.mark.parametrize('size', [(64, 48), (40, 64), (33, 32)], ids=str)
def test_images_that_are_no_whole_patches_are_refused(network, size):
    """The native size pads them, as it did; the others would not know what a patch covers."""
    image = torch.randn(1, 3, *size)
    message = rf'images of {size[0]} x {size[1]} pixels and patches of 32 x 32 do not fit'
    for call in (network.extract_features, network):
        with pytest.raises(ValueError, match=message):
            call(image, Subnet(32, 2, 32))
    with pytest.raises(ValueError, match=message):
        network.cost(Subnet(32, 2, 32), image_size=size)
    assert network.extract_features(image, Subnet(32, 2)).cls.shape == (1, 32)


@pytest.mark.parametrize('subnet', [Subnet(32, 2, 4), Subnet(40, 2, 8), Subnet(32, 2, 0)], ids=str)
def test_subnet_outside_the_space_is_refused(network, subnet):
    for call in (lambda: network(torch.zeros(1, 3, 64, 64), subnet), lambda: network.extract(subnet)):
        with pytest.raises(ValueError, match=rf'{subnet} is not in the space; .*patch sizes 8, 16, 32'):
            call()


@pytest.mark.parametrize('family', ['ElasticSwinTransformer', 'ElasticResNet'])
def test_other_families_have_one_patch_size(family):
    with pytest.raises(
        TypeError, match=rf'{family} has patches of one size; patch_sizes=\[4, 8\] is a choice of Elastic'
    ):
        MODELS.build(dict(type=family, patch_sizes=[4, 8]))
