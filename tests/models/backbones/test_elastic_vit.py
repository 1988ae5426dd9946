import pytest
import torch
from mmengine.registry import MODELS
from mmpretrain.models.backbones import VisionTransformer
from mmpretrain.models.utils import resize_pos_embed
from torch.nn import functional as F
from torch.testing import assert_close

from poa_mm.elastic import ElasticLinear, Subnet
from poa_mm.models import ElasticVisionTransformer
from poa_mm.models.backbones.elastic_transformer import resize_by_product, resize_positions

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
    'without class token': dict(with_cls_token=False, out_type='featmap'),
    'mean of patches': dict(out_type='avg_featmap'),
    'mean of patches, without class token': dict(out_type='avg_featmap', with_cls_token=False),
    'without final norm': dict(final_norm=False),
    'norm before the blocks': dict(pre_norm=True),
    'norm before the blocks and bias': dict(pre_norm=True, patch_cfg=dict(bias=True)),
    'no bias of the patches': dict(patch_cfg=dict(bias=False)),
    'dropout': dict(drop_rate=0.3, layer_cfgs=dict(attn_drop_rate=0.2, drop_rate=0.1)),
    'frozen': dict(frozen_stages=2),
    'all at once': dict(
        with_cls_token=False, out_type='avg_featmap', final_norm=False, pre_norm=True, drop_rate=0.1, frozen_stages=4
    ),
}


@pytest.mark.parametrize('options', OPTIONS.values(), ids=OPTIONS)
@torch.no_grad()
def test_options_survive_extraction(elastic_vit, options):
    network = elastic_vit(**options)
    for subnet in (Subnet(32, 3), Subnet(64, 4)):
        plain = stock(network, subnet)
        image = torch.randn(2, network.in_channels, 96, 96)
        if plain.out_type == network.out_type:
            assert_close(network(image, subnet), plain(image), rtol=1e-5, atol=1e-5)
        features = network.extract_features(image, subnet)
        assert_close(network.plain_features(plain, image), features, rtol=1e-5, atol=1e-5)
        assert network.cost(subnet).params == sum(param.numel() for param in plain.parameters())


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
        (dict(out_type='pooled'), "'pooled' is not one of cls_token, featmap, raw"),
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


# --- options of mmpretrain's class ---


def test_frozen_blocks_do_not_train_and_stay_in_evaluation_mode(elastic_vit):
    network = elastic_vit(frozen_stages=2, drop_path_rate=0.5, drop_rate=0.5)
    network.train()
    trains = {name for name, param in network.named_parameters() if param.requires_grad}
    in_a_block = [name for name, _ in network.layers[0].named_parameters()]
    blocks = {f'layers.{index}.{name}' for index in (2, 3) for name in in_a_block}
    assert trains == {'mask_token', 'ln1.weight', 'ln1.bias'} | blocks
    assert [block.training for block in network.layers] == [False, False, True, True]
    assert not any(module.training for module in network.layers[0].modules())
    assert not network.drop_after_pos.training
    assert all(block.training for block in elastic_vit().train().layers)


@pytest.mark.parametrize(('frozen', 'kept'), [(1, 1), (2, 2), (3, 2), (4, 3), (0, None), (-1, None)])
def test_a_subnet_has_as_many_frozen_blocks_as_it_keeps(elastic_vit, frozen, kept):
    config, _ = elastic_vit(frozen_stages=frozen).extract(Subnet(32, 3))  # blocks 0, 1 and 3
    assert config.get('frozen_stages') == kept


def test_dropout_in_training_only(elastic_vit):
    network = elastic_vit(drop_rate=0.5, layer_cfgs=dict(attn_drop_rate=0.5))
    image = torch.randn(2, 3, 64, 64)
    subnet = Subnet(48, 3)
    assert torch.equal(network(image, subnet)[0], network(image, subnet)[0])
    network.train()
    assert not torch.equal(network(image, subnet)[0], network(image, subnet)[0])
    assert network.layers[1].attn.attn_drop_rate == network.layers[1].ffn.layers[2].p == 0.5


def test_the_mean_of_the_patches_is_the_class_feature(elastic_vit):
    network = elastic_vit(with_cls_token=False, out_type='featmap')
    assert network.neck == dict(type='GlobalAveragePooling')
    image = torch.randn(2, 3, 64, 64)
    (featmap,) = network(image)
    assert featmap.shape == (2, 64, 4, 4)
    assert_close(network.extract_features(image).cls, featmap.mean(dim=(2, 3)))
    averaged = elastic_vit(out_type='avg_featmap')
    assert averaged.neck is None
    assert_close(averaged.extract_features(image).cls, averaged(image)[0])


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(with_cls_token=False), "out_type 'cls_token' needs with_cls_token; without: featmap, raw, avg_featmap"),
        (dict(patch_cfg=dict(stride=8)), 'may hold bias only: masks lie on a grid of whole patches'),
        (dict(layer_cfgs=dict(ffn_type='swiglu_fused')), r"layer_cfgs has \['ffn_type'\]; valid: drop_rate, attn_drop"),
        (dict(layer_cfgs=dict(drop_rate=1.0)), r'drop_rate 1.0 is not in \[0, 1\)'),
        (dict(frozen_stages=5), 'frozen_stages 5 is more than the 4 blocks'),
    ],
)
def test_what_a_supernet_cannot_do_is_said(elastic_vit, options, message):
    with pytest.raises(ValueError, match=message):
        elastic_vit(**options)


def test_blocks_that_differ_are_refused(elastic_vit):
    with pytest.raises(TypeError, match='layer_cfgs has to be a dict: all blocks of a supernet are alike'):
        elastic_vit(layer_cfgs=[dict(drop_rate=0.1)] * 4)


@pytest.mark.parametrize('mode', ['bicubic', 'bilinear'])
def test_resizing_as_a_product_is_the_same(elastic_vit, mode):
    """Which GPUs do to be deterministic."""
    network = elastic_vit(interpolate_mode=mode)
    resizes = resize_positions, resize_by_product
    found = [resize(network.pos_embed, network.patch_resolution, (2, 7), mode, 1) for resize in resizes]
    assert_close(*found)
    grads = [torch.autograd.grad(value.square().sum(), network.pos_embed)[0] for value in found]
    assert_close(*grads)
