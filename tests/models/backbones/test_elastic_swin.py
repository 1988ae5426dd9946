import copy

import pytest
import torch
from mmengine.registry import MODELS
from mmpretrain.models.backbones import SwinTransformer
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from poa_mm.deploy.public_checkpoint import convert_public_state_dict
from poa_mm.elastic import ElasticLinear, Subnet, swin_cost
from poa_mm.models import ElasticSwinTransformer

# The golden network.
ARCH = dict(embed_dims=32, depths=[1, 1, 4, 1], num_heads=[4, 8, 16, 32])
SETTINGS = dict(arch=ARCH, widths=(16, 24, 32), depths=(2, 3, 4), img_size=64, window_size=4)
SUBNETS = [Subnet(width, depth) for width in (16, 24, 32) for depth in (2, 3, 4)]


def stock(network, subnet):
    """The plain network that ``subnet`` is extracted to, loaded strictly."""
    config, state = network.extract(subnet)
    assert config.pop('type') == 'SwinTransformer'
    plain = SwinTransformer(**config)
    plain.load_state_dict(state, strict=True)
    plain.eval()
    return plain


@pytest.fixture(scope='module')
def elastic_swin(randomise):
    """Maker of small elastic Swins, of the sizes of the golden one unless told otherwise."""

    def make(**options):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = randomise(ElasticSwinTransformer(**SETTINGS | options))
        network.eval()
        return network

    return make


@pytest.fixture(scope='module')
def network(elastic_swin):
    return elastic_swin()


# --- golden numbers ---


@torch.no_grad()
def test_golden_features(golden):
    tensors, told = golden('swin')
    public = {name.replace('model.', 'backbone.', 1): t for name, t in tensors.items() if name.startswith('model.')}
    state = convert_public_state_dict(public)
    network = ElasticSwinTransformer(**SETTINGS, stem_norm='full')
    network.load_state_dict({name.removeprefix('backbone.'): tensor for name, tensor in state.items()})
    network.eval()
    for name, size in told['networks'].items():
        subnet = Subnet(size['width'], size['depth'])
        features = network.extract_features(tensors['image'], subnet)
        masked = network.extract_features(tensors['image'], subnet, tensors['mask'].bool())
        expected = [tensors[f'{name}.{key}'] for key in ('pooled', 'region', 'masked.pooled')]
        assert_close([features.cls, features.patch, masked.cls], expected, rtol=0, atol=1e-5)
        assert network.space.multiplicity(subnet, 2) == told['multiplicity'][f'({subnet.width}, {subnet.depth})']


# --- extraction: what the supernet computes is what the plain network computes ---


@pytest.mark.parametrize('size', [(64, 64), (96, 96), (128, 32), (50, 71), (17, 33), (4, 4)], ids=str)
@torch.no_grad()
def test_extracted_network_gives_the_same(elastic_swin, size):
    """Whole windows, maps that are padded to windows and maps smaller than one."""
    network = elastic_swin(out_indices=(0, 1, 2, 3))
    image = torch.randn(2, 3, *size)
    for subnet in SUBNETS:
        plain = stock(network, subnet)
        maps = network(image, subnet)
        assert [x.shape[1] for x in maps] == [subnet.width * 2**stage for stage in range(4)]
        assert_close(maps, plain(image), rtol=1e-5, atol=1e-5)
        assert_close(network.plain_features(plain, image), network.extract_features(image, subnet), rtol=0, atol=1e-5)


OPTIONS = {
    'image and channels': dict(img_size=(48, 96), in_channels=1),
    'patch size': dict(patch_size=2),
    'odd window': dict(window_size=3),
    'two norms': dict(out_indices=(3, 1)),
    'drop path': dict(drop_path_rate=0.5),
    'deep stages': dict(arch=dict(ARCH, depths=[2, 3, 5, 2]), depths=(3, 5)),
    'one head': dict(arch=dict(ARCH, num_heads=[1, 2, 4, 8]), widths=(32,)),
    'position embedding': dict(use_abs_pos_embed=True),
    'unshifted': dict(arch=dict(ARCH, depths=[1, 2, 4, 2]), unshifted_stages=[3, 2]),
    'frozen': dict(frozen_stages=1, norm_eval=True),
    'dropout': dict(drop_rate=0.5),
    'all at once': dict(use_abs_pos_embed=True, frozen_stages=3, norm_eval=True, drop_rate=0.2, pad_small_map=True),
}


@pytest.mark.parametrize('options', OPTIONS.values(), ids=OPTIONS)
@torch.no_grad()
def test_options_survive_extraction(elastic_swin, options):
    network = elastic_swin(**options)
    for subnet in (network.space.smallest, network.space.largest):
        image = torch.randn(2, network.in_channels, 48, 80)
        assert_close(network(image, subnet), stock(network, subnet)(image), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('alias', ['tiny', 'small', 'base', '112x11'])
@pytest.mark.parametrize(('dtype', 'std', 'atol'), [(torch.float32, 0.02, 1e-4), (torch.float64, 0.1, 1e-9)])
@torch.no_grad()
def test_full_size(alias, dtype, std, atol):
    """Weights of 0.1 magnify rounding from layer to layer, to 1e-4 in single precision: those are for double."""
    network = ElasticSwinTransformer('base').to(dtype)
    for param in network.parameters():
        param += std * torch.randn_like(param)
    network.eval()
    plain = stock(network, network.space.parse(alias)).to(dtype)
    plain.load_state_dict(network.extract(network.space.parse(alias))[1])  # `stock` rounds to single precision
    for size in (224, 96):
        image = torch.randn(1, 3, size, size, dtype=dtype)
        assert_close(network(image, network.space.parse(alias)), plain(image), rtol=0, atol=atol)


def test_blocks_keep_their_shift(network):
    """Blocks 0, 1 and 3 of four stay: two neighbours are shifted, which no stock Swin has by itself."""
    assert [block.attn.shift_size for block in network.stages[2].blocks] == [0, 2, 0, 2]
    for depth, shifts in {2: [0, 2], 3: [0, 2, 2], 4: [0, 2, 0, 2]}.items():
        config, _ = network.extract(Subnet(24, depth))
        assert ('stage_cfgs' in config) == (depth == 3)
        plain = stock(network, Subnet(24, depth))
        assert [block.attn.shift_size for block in plain.stages[2].blocks] == shifts


@torch.no_grad()
def test_unshifted_stages(elastic_swin):
    network = elastic_swin(arch=dict(ARCH, depths=[1, 2, 4, 2]), unshifted_stages=[3])
    shifts = [[block.attn.shift_size for block in stage.blocks] for stage in network.stages]
    assert shifts == [[0], [0, 2], [0, 2, 0, 2], [0, 0]]
    for depth in (3, 4):
        plain = stock(network, Subnet(24, depth))
        assert [block.attn.shift_size for block in plain.stages[3].blocks] == [0, 0]
    # Which is what the library does with small maps that it need not pad.
    unpadded = elastic_swin(arch=dict(ARCH, depths=[1, 2, 4, 2]), window_size=2, pad_small_map=False)
    padded = elastic_swin(arch=dict(ARCH, depths=[1, 2, 4, 2]), window_size=2, unshifted_stages=[3])
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert_close(padded(image), unpadded(image))
        shifted = elastic_swin(arch=dict(ARCH, depths=[1, 2, 4, 2]), window_size=2)(image)[0]
        assert (shifted - unpadded(image)[0]).abs().max() > 1e-2


def test_norm_of_the_stem(elastic_swin):
    """At full width there is one norm. Narrower, only that over the slice is a plain network's."""
    sliced, full = elastic_swin(), elastic_swin(stem_norm='full')
    image = torch.randn(2, 3, 64, 64)
    assert torch.equal(full(image)[0], sliced(image)[0])
    assert (full(image, Subnet(24, 4))[0] - sliced(image, Subnet(24, 4))[0]).abs().max() > 0.01
    assert_close(full(image, Subnet(32, 3)), stock(full, Subnet(32, 3))(image), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r'no plain network equals subnet 24x4.*all 32 channels.*full'):
        full.extract(Subnet(24, 4))


def test_extracted_config_builds_from_the_registry(network):
    config, state = network.extract(Subnet(16, 3))
    config['type'] = f'mmpretrain.{config["type"]}'
    MODELS.build(config).load_state_dict(state)


def test_extraction_takes_any_name(elastic_swin):
    config, _ = elastic_swin(aliases=dict(little='24x3')).extract('little')
    assert config['arch'] == dict(embed_dims=24, depths=[1, 1, 3, 1], num_heads=[3, 6, 12, 24])


def test_extracted_weights_are_copies(network):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for value in network.extract(network.space.largest)[1].values():
        assert not value.requires_grad
        value.fill_(7)
    assert_close(network.state_dict(), before)


def test_checkpoint_keys_are_those_of_the_stock_network(network):
    """A contract: public Swin checkpoints load, and ours load there, but for the mask token."""
    plain = SwinTransformer(ARCH, img_size=64, window_size=4)
    state = {name: value.shape for name, value in network.state_dict().items()}
    assert state.pop('mask_token') == (1, 1, 32)
    assert state == {name: value.shape for name, value in plain.state_dict().items()}


# --- the forward pass ---


@pytest.mark.parametrize('subnet', [Subnet(16, 3), Subnet(32, 4)], ids=str)
@torch.no_grad()
def test_features_are_those_of_the_last_map(network, subnet):
    """Every cell of the map is four patches."""
    image, mask = torch.randn(2, 3, 64, 90), torch.rand(2, 4 * 6) < 0.5
    (last,) = network(image, subnet, mask)
    features = network.extract_features(image, subnet, mask)
    assert last.shape == (2, 8 * subnet.width, 2, 3)
    assert network.channels_of(subnet) == 8 * subnet.width
    assert_close(features.cls, last.mean(dim=(2, 3)))
    patches = features.patch.transpose(1, 2).unflatten(2, network.mask_grid((64, 90)))
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        assert torch.equal(patches[..., row::2, column::2], last)


@torch.no_grad()
def test_default_is_the_whole_network(network):
    image = torch.randn(2, 3, 64, 64)
    assert_close(network(image), network(image, network.space.largest), rtol=0, atol=0)
    assert_close(network.extract_features(image), network.extract_features(image, Subnet(32, 4)), rtol=0, atol=0)


def test_whole_network_slices_nothing(network, monkeypatch):
    convolved = []
    plain = F.conv2d
    monkeypatch.setattr(ElasticLinear, 'sliced', lambda *args: pytest.fail('sliced at full size'))
    monkeypatch.setattr(F, 'conv2d', lambda *args: convolved.append(args[1]) or plain(*args))
    network(torch.randn(1, 3, 64, 64))
    assert convolved[0] is network.patch_embed.projection.weight


@torch.no_grad()
def test_no_state_is_left_behind(network):
    """The same subnet gives the same, whatever ran in between."""
    image = torch.randn(2, 3, 64, 64)
    before = network.extract_features(image, Subnet(16, 2))
    network.extract_features(image, Subnet(24, 4))
    assert_close(network.extract_features(image, Subnet(16, 2)), before, rtol=0, atol=0)


@pytest.mark.parametrize('subnet', SUBNETS, ids=str)
def test_gradient_reaches_the_subnet_and_nothing_else(elastic_swin, subnet):
    """Seen in the slices of the gradients. The bias of the keys has none: softmax does not see it."""
    network = elastic_swin()
    mask = torch.arange(64).expand(2, 64) % 3 == 0
    features = network.extract_features(torch.randn(2, 3, 128, 128), subnet, mask)
    (features.cls.pow(3).sum() + features.patch.pow(3).sum()).backward()
    gradients = copy.deepcopy(network)
    with torch.no_grad():
        for gradient, param in zip(gradients.parameters(), network.parameters()):
            gradient.copy_(torch.zeros_like(param) if param.grad is None else param.grad)
    _, in_use = gradients.extract(subnet)
    in_use['mask_token'] = gradients.mask_token[..., : subnet.width]
    in_use = {name: value for name, value in in_use.items() if not name.endswith('index')}
    everything = sum(gradient.count_nonzero() for gradient in gradients.parameters())
    assert sum(value.count_nonzero() for value in in_use.values()) == everything
    for name, value in in_use.items():
        if name.endswith('qkv.bias'):
            query, _, value = value.chunk(3)
            assert (query != 0).all(), name
        assert (value != 0).all(), name


@pytest.mark.parametrize('size', [(64, 64), (50, 70)], ids=str)
@pytest.mark.parametrize('subnet', [Subnet(16, 2), Subnet(32, 4)], ids=str)
@torch.no_grad()
def test_mask_replaces_what_is_below_it(network, subnet, size):
    image = torch.randn(2, 3, *size)
    mask = torch.zeros(2, *network.mask_grid(size), dtype=torch.bool)
    mask[0, 1, 2] = mask[1, 3] = True
    pixels = mask.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None, : size[0], : size[1]]
    other = torch.where(pixels, torch.randn_like(image), image)
    nothing, mask = torch.zeros_like(mask).flatten(1), mask.flatten(1)
    assert_close(network.extract_features(image, subnet, mask), network.extract_features(other, subnet, mask))
    unmasked = network.extract_features(image, subnet)
    assert (network.extract_features(other, subnet).cls - unmasked.cls).abs().amax(dim=1).min() > 1e-3
    assert (network.extract_features(image, subnet, mask).cls - unmasked.cls).abs().amax(dim=1).min() > 1e-3
    assert_close(network.extract_features(image, subnet, nothing), unmasked)


@torch.no_grad()
def test_mask_token_is_what_masked_tokens_become(elastic_swin):
    network = elastic_swin()
    network.patch_embed.norm.weight.zero_()
    network.patch_embed.norm.bias.copy_(network.mask_token[0, 0])
    image = torch.randn(1, 3, 64, 64)
    everything = torch.ones(1, 16, dtype=torch.bool)
    for subnet in (Subnet(16, 2), Subnet(32, 4)):
        assert_close(network.extract_features(image, subnet, everything), network.extract_features(image, subnet))


@pytest.mark.parametrize(
    'size, grid', [((224, 224), (14, 14)), ((96, 96), (6, 6)), ((64, 33), (4, 4)), ((1, 65), (2, 6))], ids=str
)
@torch.no_grad()
def test_mask_grid(network, size, grid):
    assert network.mask_grid(size) == grid
    patch = network.extract_features(torch.zeros(1, 3, *size), Subnet(16, 2)).patch
    assert patch.shape == (1, grid[0] * grid[1], 128)


@torch.no_grad()
def test_drop_path_is_for_training_only(elastic_swin):
    plain, dropping = elastic_swin(), elastic_swin(drop_path_rate=0.5)
    assert all(block.drop_path_rate == 0.5 for stage in dropping.stages for block in stage.blocks)
    image = torch.randn(4, 3, 64, 64)
    expected = plain.extract_features(image).cls
    assert torch.equal(dropping.extract_features(image).cls, expected)
    dropping.train()
    attended = []
    for stage in dropping.stages:
        for block in stage.blocks:
            block.attn.register_forward_hook(lambda module, args, output: attended.append(len(output)))
    first, second = dropping.extract_features(image).cls, dropping.extract_features(image).cls
    assert not torch.allclose(first, expected) and not torch.allclose(first, second)
    assert attended == [2] * 14  # half of the batch is computed
    plain.train()
    assert torch.equal(plain.extract_features(image).cls, expected)


def test_autocast(network):
    image = torch.randn(2, 3, 64, 64)
    with torch.autocast('cpu', torch.bfloat16), torch.no_grad():
        features = network.extract_features(image, Subnet(24, 3), torch.rand(2, 16) < 0.5)
    assert features.cls.isfinite().all()


# --- cost ---


@pytest.mark.parametrize(
    'width, depth, params, gflops',
    [(96, 6, 27_519_354, 9.0), (96, 18, 48_837_258, 17.4), (128, 18, 86_743_224, 30.8)],
)
def test_published_sizes(width, depth, params, gflops):
    """Swin-T, -S and -B with heads of 32 channels, without the classifier; multiply-adds as in their paper, times 2."""
    cost = swin_cost(width, (2, 2, depth, 2), image_size=(224, 224), head_dim=32)
    assert cost.params == params
    assert cost.flops / 1e9 == pytest.approx(gflops, rel=0.02)


@pytest.mark.parametrize('options', OPTIONS.values(), ids=OPTIONS)
def test_cost_is_that_of_the_stock_network(elastic_swin, options):
    network = elastic_swin(**options)
    for subnet, size in ((network.space.smallest, (50, 90)), (network.space.largest, network.img_size)):
        plain = stock(network, subnet)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            plain(torch.zeros(1, network.in_channels, *size))
        cost = network.cost(subnet, size)
        assert cost.flops == counter.get_total_flops()
        assert cost.params == sum(param.numel() for param in plain.parameters())
    assert network.cost(subnet) == cost


# --- users' mistakes ---


@pytest.mark.parametrize('subnet', [Subnet(20, 2), Subnet(16, 1), Subnet(64, 4), Subnet(32, 5)], ids=str)
def test_subnet_outside_the_space_is_refused(network, subnet):
    image = torch.randn(1, 3, 64, 64)
    calls = [
        lambda: network(image, subnet),
        lambda: network.extract_features(image, subnet),
        lambda: network.extract(subnet),
        lambda: network.cost(subnet),
        lambda: network.channels_of(subnet),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=f'{subnet} is not in the space; valid here: widths 16, 24, 32; depths 2'):
            call()


@pytest.mark.parametrize('shape', [(2, 4), (1, 16), (2, 4, 4), (16,), (2, 256)], ids=str)
def test_mask_of_another_shape_is_refused(network, shape):
    with pytest.raises(ValueError, match=r'mask of shape .* does not fit 2 images, grid \(4, 4\)'):
        network.extract_features(torch.randn(2, 3, 64, 64), None, torch.zeros(shape, dtype=torch.bool))


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(arch='enormous'), "'enormous' is not one of .*base"),
        (dict(arch=dict(embed_dims=32, depths=[1, 1, 4, 1])), 'needs exactly the keys .*num_heads'),
        (dict(arch=dict(ARCH, depth=4)), 'needs exactly the keys'),
        (dict(arch=dict(ARCH, depths=[1, 4, 1])), 'of four stages'),
        (dict(arch=dict(ARCH, num_heads=[4, 8, 16])), 'of four stages'),
        (dict(arch=dict(ARCH, num_heads=[4, 4, 4, 4])), 'num_heads doubled'),
        (dict(arch=dict(ARCH, num_heads=[5, 10, 20, 40])), 'a divisor of embed_dims'),
        (dict(widths=(20, 32)), 'width 20 does not divide into heads of 8 channels'),
        (dict(widths=(16, 24)), 'must be the whole network, 32x4'),
        (dict(widths=(32, 40)), 'must be the whole network, 32x4'),
        (dict(depths=(2, 3)), 'must be the whole network, 32x4'),
        (dict(depths=(4, 5)), 'must be the whole network, 32x4'),
        (dict(depths=(0, 4)), 'must be distinct positive integers'),
        (dict(aliases=dict(tiny='96x6')), '96x6 is not in the space'),
        (dict(out_indices=(0, 1)), r'out_indices \(0, 1\) must be among 0 .. 3 and hold 3'),
        (dict(out_indices=(3, 4)), 'must be among 0 .. 3'),
        (dict(drop_path_rate=1.0), r'1.0 is not in \[0, 1\)'),
        (dict(drop_path_rate=-0.1), r'-0.1 is not in \[0, 1\)'),
        (dict(stem_norm='cut'), "'cut' is not one of sliced, full"),
        (dict(drop_rate=1), r'drop_rate 1 is not in \[0, 1\)'),
        (dict(unshifted_stages=[4]), r'unshifted_stages \[4\] are not among 0 .. 3'),
        (dict(frozen_stages=4), r'frozen_stages 4 is not among -1 \(none\), 0 .. 3'),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ElasticSwinTransformer(**SETTINGS | options)


# --- default spaces, initialisation, learning rates ---


@pytest.mark.parametrize(
    'arch, count, smallest, names',
    [
        ('base', 39, Subnet(96, 6), {'tiny': '96x6', 'small': '96x18', 'base': '128x18'}),
        ('small', 13, Subnet(96, 6), {'tiny': '96x6', 'small': '96x18'}),
        ('tiny', 5, Subnet(96, 2), {'tiny': '96x6'}),
    ],
)
def test_default_space(arch, count, smallest, names):
    with torch.device('meta'):
        network = ElasticSwinTransformer(arch)
    assert len(network.space) == count
    assert network.space.smallest == smallest
    assert network.head_dim == 16
    assert {name: str(subnet) for name, subnet in network.space.aliases.items()} == names
    assert network.feature_channels == 8 * network.embed_dims
    assert network.mask_grid(network.img_size) == (14, 14)


def test_initial_weights():
    network = ElasticSwinTransformer(**SETTINGS)
    network.init_weights()
    for name, module in network.named_modules():
        if isinstance(module, ElasticLinear):
            assert_close(module.weight.std(), torch.tensor(0.02), rtol=0.1, atol=0, msg=name)
            assert module.bias is None or not module.bias.any(), name
        if name.endswith('w_msa'):
            assert_close(module.relative_position_bias_table.std(), torch.tensor(0.02), rtol=0.3, atol=0, msg=name)
    assert not network.mask_token.any()


def test_get_layer_depth(network):
    plain = SwinTransformer(ARCH, img_size=64, window_size=4)
    for name, _ in plain.named_parameters():
        depth, total = plain.get_layer_depth(name)
        assert network.get_layer_depth(f'backbone.{name}', 'backbone.') == (depth + ('.downsample.' in name), total)
    assert network.get_layer_depth('stages.1.downsample.norm.bias') == network.get_layer_depth('stages.2.blocks.0.norm')
    assert network.get_layer_depth('mask_token') == network.get_layer_depth('patch_embed.norm.bias') == (0, 9)
    assert network.get_layer_depth('backbone.mask_token', 'backbone.') == (0, 9)
    assert network.get_layer_depth('stages.2.blocks.3.norm1.weight') == (6, 9)
    assert network.get_layer_depth('head.mask_token', 'backbone.') == (8, 9)


def test_registered_in_the_root_registry():
    assert type(MODELS.build(dict(type='ElasticSwinTransformer', **SETTINGS))) is ElasticSwinTransformer


# --- options of mmpretrain's class ---


@pytest.mark.parametrize('frozen', [-1, 0, 1, 3])
def test_frozen_stages_are_those_that_mmpretrain_freezes(elastic_swin, frozen):
    network = elastic_swin(frozen_stages=frozen, drop_path_rate=0.5)
    network.train()
    plain = stock(network, network.space.largest)
    plain.train()
    trains = {name for name, param in network.named_parameters() if param.requires_grad}
    expected = {name for name, param in plain.named_parameters() if param.requires_grad}
    assert trains - {'mask_token'} == expected
    assert [stage.training for stage in network.stages] == [index > frozen for index in range(4)]


def test_small_maps_without_padding(elastic_swin):
    """As in the stock network, which refuses maps smaller than a window."""
    network = elastic_swin(pad_small_map=False)
    for computes in (network, stock(network, network.space.largest)):
        with pytest.raises(AssertionError, match='pad_small_map'):
            computes(torch.zeros(1, 3, 48, 48))


def test_position_embedding_starts_at_random(elastic_swin):
    network = ElasticSwinTransformer(**SETTINGS, use_abs_pos_embed=True)
    network.init_weights()
    assert network.absolute_pos_embed.std().item() == pytest.approx(0.02, rel=0.2)
