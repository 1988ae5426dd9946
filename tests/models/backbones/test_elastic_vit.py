import pytest
import torch
from mmengine.registry import MODELS
from mmpretrain.models.backbones import VisionTransformer
from mmpretrain.models.utils import resize_pos_embed
from torch.nn import functional as F
from torch.testing import assert_close

from poa_mm.elastic import ElasticLinear, Subnet
from poa_mm.models import ElasticVisionTransformer

ARCH = dict(embed_dims=64, num_layers=4, num_heads=4, feedforward_channels=256)
SUBNETS = [Subnet(width, depth) for width in (32, 48, 64) for depth in (2, 3, 4)]


def stock(network, subnet, **options):
    """The plain network that ``subnet`` is extracted to, loaded strictly."""
    config, state = network.extract(subnet)
    assert config.pop('type') == 'VisionTransformer'
    plain = VisionTransformer(**config, **options)
    plain.load_state_dict(state, strict=True)
    plain.eval()
    return plain


@pytest.fixture(scope='module')
def network(elastic_vit):
    return elastic_vit()


# --- extraction: what the supernet computes is what the plain network computes ---


@pytest.mark.parametrize('subnet', SUBNETS, ids=str)
@pytest.mark.parametrize('out_type', ['cls_token', 'featmap', 'raw'])
@torch.no_grad()
def test_extracted_network_gives_the_same(elastic_vit, subnet, out_type):
    network = elastic_vit(out_type=out_type, out_indices=list(range(subnet.depth)))
    plain = stock(network, subnet, out_type=out_type, out_indices=list(range(subnet.depth)))
    image = torch.randn(2, 3, 64, 64)
    outs = network(image, subnet)
    assert len(outs) == subnet.depth
    shape = {'cls_token': (2, subnet.width), 'featmap': (2, subnet.width, 4, 4), 'raw': (2, 17, subnet.width)}
    assert outs[0].shape == shape[out_type]
    assert_close(outs, plain(image), rtol=1e-5, atol=1e-5)


OPTIONS = {
    'without qkv bias': dict(qkv_bias=False),
    'without layer scale': dict(layer_scale_init_value=0),
    'norm eps': dict(norm_cfg=dict(type='LN', eps=0.1)),
    'narrow mlp': dict(arch=dict(ARCH, feedforward_channels=96)),
    'oblong': dict(img_size=(48, 96), patch_size=(8, 16), in_channels=1),
    'drop path': dict(drop_path_rate=0.5),
    'bilinear': dict(interpolate_mode='bilinear'),
}


@pytest.mark.parametrize('options', OPTIONS.values(), ids=OPTIONS)
@torch.no_grad()
def test_options_survive_extraction(elastic_vit, options):
    network = elastic_vit(**options)
    for subnet in (Subnet(32, 3), Subnet(64, 4)):
        plain = stock(network, subnet)
        image = torch.randn(2, network.in_channels, 96, 96)
        assert_close(network(image, subnet), plain(image), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('size', [(32, 32), (48, 80), (96, 64), (56, 70)], ids=str)
@torch.no_grad()
def test_other_image_sizes_resize_the_position_embedding_alike(network, size):
    subnet = Subnet(48, 3)
    image = torch.randn(1, 3, *size)
    features = network.extract_features(image, subnet)
    rows, columns = network.mask_grid(size)
    assert features.patch.shape == (1, rows * columns, 48)
    (raw,) = stock(network, subnet, out_type='raw')(image)
    assert_close(torch.cat([features.cls[:, None], features.patch], dim=1), raw, rtol=1e-5, atol=1e-5)


def test_extracted_config_builds_from_the_registry(network):
    config, state = network.extract(Subnet(32, 2))
    config['type'] = f'mmpretrain.{config["type"]}'
    MODELS.build(config).load_state_dict(state)


def test_extraction_takes_any_name(elastic_vit):
    network = elastic_vit(aliases=dict(little='48x3'))
    config, _ = network.extract('little')
    assert config['arch'] == dict(embed_dims=48, num_layers=3, num_heads=3, feedforward_channels=192)


def test_extracted_weights_are_copies(network):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for value in network.extract(network.space.largest)[1].values():
        assert not value.requires_grad
        value.fill_(7)
    assert_close(network.state_dict(), before)


def test_checkpoint_keys_are_those_of_the_stock_network(network):
    """A contract: public ViT checkpoints load, and ours load there, but for the mask token."""
    plain = VisionTransformer(ARCH, img_size=64, layer_scale_init_value=0.5)
    state = {name: value.shape for name, value in network.state_dict().items()}
    assert state.pop('mask_token') == (1, 1, 64)
    assert state == {name: value.shape for name, value in plain.state_dict().items()}


# --- the forward pass ---


@pytest.mark.parametrize('subnet', SUBNETS, ids=str)
@torch.no_grad()
def test_forward_equals_extract_features(elastic_vit, subnet):
    network = elastic_vit(out_type='raw')
    image, mask = torch.randn(2, 3, 64, 64), torch.rand(2, 16) < 0.5
    features = network.extract_features(image, subnet, mask)
    (raw,) = network(image, subnet, mask)
    assert torch.equal(features.cls, raw[:, 0]) and torch.equal(features.patch, raw[:, 1:])


@torch.no_grad()
def test_default_is_the_whole_network(network):
    image = torch.randn(2, 3, 64, 64)
    assert_close(network(image), network(image, network.space.largest), rtol=0, atol=0)
    assert_close(network.extract_features(image), network.extract_features(image, Subnet(64, 4)), rtol=0, atol=0)


def test_whole_network_slices_nothing(network, monkeypatch):
    convolved = []
    plain = F.conv2d
    monkeypatch.setattr(ElasticLinear, 'sliced', lambda *args: pytest.fail('sliced at full size'))
    monkeypatch.setattr(F, 'conv2d', lambda *args: convolved.append(args[1]) or plain(*args))
    network(torch.randn(1, 3, 64, 64))
    assert convolved[0] is network.patch_embed.projection.weight


@torch.no_grad()
def test_outputs_come_in_the_order_asked_for(elastic_vit):
    image, subnet = torch.randn(2, 3, 64, 64), Subnet(32, 3)
    first, middle, last = elastic_vit(out_indices=[0, 1, 2])(image, subnet)
    outs = elastic_vit(out_indices=(-1, 0, -2))(image, subnet)
    assert_close(outs, (last, first, middle), rtol=0, atol=0)


@torch.no_grad()
def test_no_state_is_left_behind(network):
    """The same subnet gives the same, whatever ran in between."""
    image = torch.randn(2, 3, 64, 64)
    before = network.extract_features(image, Subnet(32, 2))
    network.extract_features(image, Subnet(48, 4))
    assert_close(network.extract_features(image, Subnet(32, 2)), before, rtol=0, atol=0)


@pytest.mark.parametrize('subnet', [Subnet(32, 2), Subnet(64, 4)], ids=str)
def test_gradient_stays_in_the_subnet(elastic_vit, subnet):
    network = elastic_vit()
    mask = torch.arange(16).expand(2, 16) < 8
    features = network.extract_features(torch.randn(2, 3, 64, 64), subnet, mask)
    (features.cls.pow(3).sum() + features.patch.pow(3).sum()).backward()
    in_use = {2: (0, 3), 4: (0, 1, 2, 3)}[subnet.depth]
    for index, layer in enumerate(network.layers):
        assert all((param.grad is not None) == (index in in_use) for param in layer.parameters())
    for name in ('cls_token', 'mask_token', 'pos_embed'):
        grad = getattr(network, name).grad
        assert (grad[..., : subnet.width] != 0).all() and (grad[..., subnet.width :] == 0).all(), name
    assert (network.layers[0].attn.qkv.weight.grad[:, subnet.width :] == 0).all()


@pytest.mark.parametrize('subnet', [Subnet(32, 2), Subnet(64, 4)], ids=str)
@torch.no_grad()
def test_mask_replaces_what_is_below_it(network, subnet):
    image = torch.randn(2, 3, 64, 64)
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[0, 1, 2] = mask[1, 3] = True
    pixels = mask.repeat_interleave(16, 1).repeat_interleave(16, 2).unsqueeze(1)
    other = torch.where(pixels, torch.randn_like(image), image)
    mask = mask.flatten(1)
    assert_close(network.extract_features(image, subnet, mask), network.extract_features(other, subnet, mask))
    unmasked = network.extract_features(image, subnet)
    assert (network.extract_features(other, subnet).cls - unmasked.cls).abs().max() > 1e-3
    assert (network.extract_features(image, subnet, mask).cls - unmasked.cls).abs().max() > 1e-3
    nothing = torch.zeros_like(mask)
    assert_close(network.extract_features(image, subnet, nothing), unmasked)


@torch.no_grad()
def test_mask_token_is_what_masked_patches_become(elastic_vit):
    network = elastic_vit()
    network.patch_embed.projection.weight.zero_()
    network.patch_embed.projection.bias.copy_(network.mask_token[0, 0])
    image = torch.randn(1, 3, 64, 64)
    everything = torch.ones(1, 16, dtype=torch.bool)
    for subnet in (Subnet(32, 2), Subnet(64, 4)):
        assert_close(network.extract_features(image, subnet, everything), network.extract_features(image, subnet))


@pytest.mark.parametrize('size, grid', [((64, 64), (4, 4)), ((32, 96), (2, 6)), ((60, 33), (4, 3)), ((1, 16), (1, 1))])
def test_mask_grid(network, size, grid):
    assert network.mask_grid(size) == grid
    assert network.patch_embed(torch.zeros(1, 3, *size), 32)[1] == grid


@torch.no_grad()
def test_drop_path_is_for_training_only(elastic_vit):
    plain, dropping = elastic_vit(), elastic_vit(drop_path_rate=0.5)
    assert all(layer.drop_path_rate == 0.5 for layer in dropping.layers)
    image = torch.randn(4, 3, 64, 64)
    expected = plain.extract_features(image).cls
    assert torch.equal(dropping.extract_features(image).cls, expected)
    dropping.train()
    first, second = dropping.extract_features(image).cls, dropping.extract_features(image).cls
    assert not torch.allclose(first, expected) and not torch.allclose(first, second)
    plain.train()
    assert torch.equal(plain.extract_features(image).cls, expected)
    plain.eval()


# --- users' mistakes ---


@pytest.mark.parametrize('subnet', [Subnet(40, 2), Subnet(32, 1), Subnet(128, 4), Subnet(64, 5)], ids=str)
def test_subnet_outside_the_space_is_refused(network, subnet):
    image = torch.randn(1, 3, 64, 64)
    for call in (lambda: network.extract_features(image, subnet), lambda: network.extract(subnet)):
        with pytest.raises(ValueError, match=f'{subnet} is not in the space; valid here: widths 32, 48, 64; depths 2'):
            call()
    with pytest.raises(ValueError):
        network(image, subnet)


@pytest.mark.parametrize('shape', [(2, 9), (1, 16), (2, 4, 4), (16,)], ids=str)
def test_mask_of_another_shape_is_refused(network, shape):
    with pytest.raises(ValueError, match='does not fit tokens'):
        network.extract_features(torch.randn(2, 3, 64, 64), None, torch.zeros(shape, dtype=torch.bool))


@pytest.mark.parametrize('out_indices', [4, -5, [0, 3], [-4]])
def test_out_indices_beyond_the_blocks_in_use_are_refused(elastic_vit, out_indices):
    network = elastic_vit(out_indices=out_indices)
    with pytest.raises(ValueError, match='do not fit the 3 blocks of 48x3'):
        network(torch.randn(1, 3, 64, 64), Subnet(48, 3))


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(arch='enormous'), "'enormous' is not one of .*large"),
        (dict(arch=dict(embed_dims=64, num_layers=4)), 'needs exactly the keys .*num_heads'),
        (dict(arch=dict(ARCH, depth=4)), 'needs exactly the keys'),
        (dict(arch=dict(ARCH, num_heads=5)), '64 is not a multiple of num_heads 5'),
        (dict(widths=(24, 64)), 'width 24 does not divide into heads of 16 channels'),
        (dict(widths=(32, 48)), 'must be the whole network, 64x4'),
        (dict(widths=(64, 80)), 'must be the whole network, 64x4'),
        (dict(depths=(2, 3)), 'must be the whole network, 64x4'),
        (dict(depths=(4, 5)), 'must be the whole network, 64x4'),
        (dict(depths=(0, 4)), 'depths must be distinct positive integers'),
        (dict(arch=dict(ARCH, feedforward_channels=90)), 'width 32 does not divide|width 48 does not divide'),
        (dict(aliases=dict(small='384x12')), '384x12 is not in the space'),
        (dict(out_type='avg_featmap'), "'avg_featmap' is not one of cls_token, featmap, raw"),
        (dict(norm_cfg=dict(type='BN')), 'norm_cfg .* is not valid'),
        (dict(norm_cfg=dict(type='LN', momentum=0.1)), 'norm_cfg .* is not valid'),
        (dict(drop_path_rate=1.0), r'1.0 is not in \[0, 1\)'),
        (dict(drop_path_rate=-0.1), r'-0.1 is not in \[0, 1\)'),
    ],
)
def test_bad_options_are_refused(options, message):
    settings = dict(arch=ARCH, widths=(32, 48, 64), depths=(2, 3, 4), img_size=64)
    with pytest.raises(ValueError, match=message):
        ElasticVisionTransformer(**settings | options)


# --- default spaces, initialisation, checkpoints ---


@pytest.mark.parametrize(
    'arch, count, smallest, names',
    [
        ('large', 143, Subnet(384, 12), {'small': '384x12', 'base': '768x12', 'large': '1024x24'}),
        ('base', 49, Subnet(384, 6), {'small': '384x12', 'base': '768x12'}),
        ('deit-small', 7, Subnet(384, 6), {'small': '384x12'}),
        ('deit-tiny', 7, Subnet(192, 6), {'tiny': '192x12'}),
    ],
)
def test_default_space(arch, count, smallest, names):
    with torch.device('meta'):
        network = ElasticVisionTransformer(arch)
    assert len(network.space) == count
    assert network.space.smallest == smallest
    assert network.space.largest == Subnet(network.embed_dims, network.num_layers)
    assert {name: str(subnet) for name, subnet in network.space.aliases.items()} == names
    assert network.feature_channels == network.embed_dims


def test_initial_weights():
    network = ElasticVisionTransformer(ARCH, (32, 64), (2, 4), img_size=64)
    network.init_weights()
    for name, module in network.named_modules():
        if isinstance(module, ElasticLinear):
            assert_close(module.weight.std(), torch.tensor(0.02), rtol=0.1, atol=0, msg=name)
            assert not module.bias.any(), name
    assert_close(network.pos_embed.std(), torch.tensor(0.02), rtol=0.1, atol=0)
    assert 0 < network.cls_token.abs().max() < 1e-5
    assert not network.mask_token.any()
    assert all((layer.attn.gamma1.weight == 1e-5).all() for layer in network.layers)


@pytest.mark.parametrize('size', [96, (32, 80)], ids=str)
def test_checkpoint_of_another_image_size_resizes_the_position_embedding(elastic_vit, network, size):
    other = elastic_vit(seed=1, img_size=size)
    other.load_state_dict(network.state_dict())
    expected = resize_pos_embed(network.pos_embed, (4, 4), other.patch_resolution, 'bicubic', 1)
    assert_close(other.pos_embed, expected)
    assert torch.equal(other.layers[0].attn.qkv.weight, network.layers[0].attn.qkv.weight)


def test_get_layer_depth(network):
    plain = VisionTransformer(ARCH, img_size=64, layer_scale_init_value=0.5)
    for name, _ in plain.named_parameters():
        assert network.get_layer_depth(f'backbone.{name}', 'backbone.') == plain.get_layer_depth(name)
    assert network.get_layer_depth('mask_token') == network.get_layer_depth('cls_token') == (0, 6)
    assert network.get_layer_depth('backbone.mask_token', 'backbone.') == (0, 6)
    assert network.get_layer_depth('layers.3.ffn.layers.1.weight') == (4, 6)
    assert network.get_layer_depth('head.mask_token', 'backbone.') == (5, 6)


def test_registered_in_the_root_registry():
    network = MODELS.build(dict(type='ElasticVisionTransformer', arch=ARCH, widths=(64,), depths=(4,), img_size=64))
    assert type(network) is ElasticVisionTransformer


@pytest.mark.parametrize('mode', ['bicubic', 'bilinear'])
def test_resizing_as_a_product_is_the_same(elastic_vit, mode):
    """Which GPUs do to be deterministic."""
    network = elastic_vit(interpolate_mode=mode)
    found = [resize(network.pos_embed, (2, 7)) for resize in (network._resized, network._weighted)]
    assert_close(*found)
    grads = [torch.autograd.grad(value.square().sum(), network.pos_embed)[0] for value in found]
    assert_close(*grads)
