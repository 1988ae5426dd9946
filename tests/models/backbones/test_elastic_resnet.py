import pytest
import torch
from mmpretrain.models.backbones import ResNet
from mmpretrain.registry import MODELS
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from poa_mm.elastic import ElasticConv2d, ElasticGroupNorm, Subnet
from poa_mm.models import BottleneckResNet, ElasticResNet

SMALL = dict(
    stage_blocks=(1, 2, 4, 1),
    mid_channels=16,
    depths=(1, (1, 2), (2, 3, 4), 1),
    stem_channels=8,
    base_channels=8,
    num_groups=4,
    img_size=64,
)


@pytest.fixture
def make(randomise):
    def build(**options):
        network = randomise(ElasticResNet(**SMALL | options))
        network.eval()
        return network

    return build


def plain(network, subnet):
    config, state = network.extract(subnet)
    found = MODELS.build(config)
    found.load_state_dict(state, strict=True)
    found.eval()
    return found


# --- the space ---


def test_the_space_of_the_paper():
    with torch.device('meta'):
        network = ElasticResNet()
    space = network.space
    assert len(space) == len(set(space)) == 465
    assert (str(space.smallest), str(space.largest)) == ('64x3-4-6-3', '128x3-8-36-3')
    assert {name: str(subnet) for name, subnet in space.aliases.items()} == {
        'r50': '64x3-4-6-3', 'r101': '64x3-4-23-3', 'r152': '64x3-8-36-3'
    }  # fmt: skip
    assert network.feature_channels == 2048
    assert network.mask_grid((224, 224)) == (14, 14) and network.mask_grid((96, 96)) == (6, 6)
    params = {name: network.cost(name).params for name in space.aliases}
    assert params == dict(r50=23_508_032, r101=42_500_160, r152=58_143_808), 'those of torchvision, without classifier'


@pytest.mark.parametrize(
    'options, count, aliases',
    [
        (dict(stage_blocks=(3, 4, 6, 3), mid_channels=64, num_groups=16), 3 * 3 * 6, ['r50']),
        (dict(stage_blocks=(3, 4, 6, 3), mid_channels=64, widths=[64], depths=[3, [2, 4], [3, 6], 3]), 4, ['r50']),
        (dict(stage_blocks=(1, 1, 2, 1), widths=[96, 128], depths=[[1], [1], [1, 2], [1]]), 4, []),
        (dict(stage_blocks=(1, 1, 1, 1), aliases=dict(huge='128x1-1-1-1')), 3, ['huge']),
    ],
)
def test_other_spaces(options, count, aliases):
    with torch.device('meta'):
        network = ElasticResNet(**options)
    assert len(network.space) == count and list(network.space.aliases) == aliases


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(stage_blocks=(1, 2, 4)), r'stage_blocks \(1, 2, 4\) must be four'),
        (dict(widths=(8, 12)), 'must be the whole network, 16x1-2-4-1'),
        (dict(widths=(16, 32)), 'must be the whole network, 16x1-2-4-1'),
        (dict(depths=(1, 2, (2, 3), 1)), 'must be the whole network, 16x1-2-4-1'),
        (dict(depths=(1, (1, 2, 3), 4, 1)), 'must be the whole network, 16x1-2-4-1'),
        (dict(depths=(1, 2, 4)), 'must be the whole network, 16x1-2-4-1'),
        (dict(depths=(1, (0, 2), 4, 1)), r'depths\[1\] must be distinct positive integers'),
        (dict(depths=(2, 3, 4)), 'must be the whole network'),
        (dict(widths=(10, 16)), '4 groups do not divide 10 channels'),
        (dict(stem_channels=6), '4 groups do not divide 6 channels'),
        (dict(num_groups=64), '64 groups do not divide 8 channels'),
        (dict(num_groups=0), 'num_groups 0 is not positive'),
        (dict(strides=(1, 2, 2)), r'strides \(1, 2, 2\) must be four'),
        (dict(out_indices=(3, 4)), r'out_indices \(3, 4\) among 0, 1, 2, 3'),
        (dict(aliases=dict(r50='64x3-4-6-3')), '64x3-4-6-3 is not in the space'),
        (dict(frozen_stages=5), r'frozen_stages 5 is not among -1 \(none\), 0 \(the stem\), 1, 2, 3, 4'),
        (dict(deep_stem=True, stem_channels=4), '4 groups do not divide 2 channels'),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ElasticResNet(**SMALL | options)


# --- what it is made of ---


def test_group_norm_is_the_only_norm(make):
    names = {type(module).__name__ for module in make().modules() if 'Norm' in type(module).__name__}
    assert names == {'GroupNorm', 'ElasticGroupNorm'}


@torch.no_grad()
def test_whole_network_slices_nothing(make, monkeypatch):
    network = make()
    monkeypatch.setattr(ElasticConv2d, 'sliced', lambda *args: pytest.fail('sliced at full size'))
    monkeypatch.setattr('poa_mm.elastic.layers.leading', lambda *args: pytest.fail('sliced at full size'))
    network(torch.randn(1, 3, 64, 64))
    network(torch.randn(1, 3, 64, 64), Subnet(16, (1, 1, 2, 1)))


@torch.no_grad()
def test_stages_keep_their_channels_and_come_as_asked(make):
    network = make(out_indices=(0, 1, 2, 3))
    subnet = Subnet(8, (1, 1, 3, 1))
    maps = network(torch.randn(2, 3, 64, 64), subnet)
    assert [out.shape for out in maps] == [(2, 32, 16, 16), (2, 64, 8, 8), (2, 128, 4, 4), (2, 256, 2, 2)]
    network.out_indices = (3, 1)
    image = torch.randn(2, 3, 64, 64)
    extracted = plain(network, subnet)
    extracted.out_indices = (1, 3)
    assert_close(network(image, subnet), extracted(image)[::-1], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_features_are_the_mean_and_the_cells_of_the_last_map(make):
    network, image, subnet = make(), torch.randn(2, 3, 64, 96), Subnet(12, (1, 2, 2, 1))
    (out,) = network(image, subnet)  # (2, 256, 2, 3)
    features = network.extract_features(image, subnet)
    assert_close(features.cls, out.flatten(2).mean(2))
    patch = features.patch.view(2, 4, 6, 256)
    for row in range(4):
        for column in range(6):
            assert torch.equal(patch[:, row, column], out[:, :, row // 2, column // 2])


@pytest.mark.parametrize('options', [{}, dict(strides=(1, 2, 1, 1))], ids=['paper', 'fine'])
@torch.no_grad()
def test_mask_token_takes_the_place_of_the_stems_features(make, options):
    """After its pooling, in the cells below the mask and nowhere else."""
    network = make(**options)
    seen = []
    network.layer1[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    image = torch.randn(2, 3, 64, 64)
    rows, columns = network.mask_grid((64, 64))
    mask = torch.zeros(2, rows, columns, dtype=torch.bool)
    mask[0, 1, 2] = mask[1, rows - 1] = True
    network.extract_features(image)
    network.extract_features(image, None, mask.flatten(1))
    unmasked, masked = seen  # (2, 8, 16, 16)
    cells = mask.repeat_interleave(16 // rows, 1).repeat_interleave(16 // columns, 2).unsqueeze(1)
    assert_close(masked, torch.where(cells, network.mask_token, unmasked), rtol=0, atol=0)
    assert cells.sum() == (1 + columns) * (16 // rows) ** 2


def test_blocks_in_use(make):
    network = make()
    used = []
    for stage in network.res_layers:
        for index, block in enumerate(getattr(network, stage)):
            block.register_forward_pre_hook(lambda *_, name=f'{stage}.{index}': used.append(name))
    network(torch.randn(1, 3, 64, 64), Subnet(8, (1, 1, 3, 1)))
    assert used == ['layer1.0', 'layer2.0', 'layer3.0', 'layer3.1', 'layer3.3', 'layer4.0']


def test_a_cut_norm_keeps_its_groups(make):
    config, _ = make().extract(Subnet(8, (1, 1, 2, 1)))
    assert config['norm_cfg'] == dict(type='GN', num_groups=4)


def test_initial_weights():
    for zero in (True, False):
        network = ElasticResNet(**SMALL, zero_init_residual=zero)
        network.init_weights()
        block = network.layer3[1]
        assert isinstance(block.norm1, ElasticGroupNorm) and (block.norm1.weight == 1).all()
        assert block.norm3.weight.any() != zero
        fan_out = 9 * block.conv2.out_channels
        assert_close(block.conv2.weight.std(), torch.tensor((2 / fan_out) ** 0.5), rtol=0.1, atol=0)
        assert not network.mask_token.any()


# --- extraction: stock where stock can express it ---

STANDARD = dict(
    stage_blocks=(3, 8, 36, 3), mid_channels=8, widths=(4, 6, 8), stem_channels=4, base_channels=4, num_groups=2
)


@pytest.fixture(scope='module')
def narrow(randomise):
    """A network of the paper's depths."""
    network = randomise(ElasticResNet(**STANDARD))
    network.eval()
    return network


@pytest.mark.parametrize(
    'subnet, kind',
    [
        ('4x3-4-6-3', dict(type='ResNet', depth=50, base_channels=4, expansion=4)),
        ('4x3-4-23-3', dict(type='ResNet', depth=101, base_channels=4, expansion=4)),
        ('8x3-8-36-3', dict(type='ResNet', depth=152, base_channels=8, expansion=2)),
        ('6x3-4-6-3', dict(type='BottleneckResNet', stage_blocks=(3, 4, 6, 3), mid_channels=6, base_channels=4)),
        ('4x3-5-7-3', dict(type='BottleneckResNet', stage_blocks=(3, 5, 7, 3), mid_channels=4, base_channels=4)),
    ],
)
def test_stock_class_where_it_has_the_sizes(narrow, subnet, kind):
    config, _ = narrow.extract(Subnet.parse(subnet))
    assert {key: config[key] for key in kind} == kind
    assert set(config) - set(kind) == {'in_channels', 'stem_channels', 'strides', 'norm_cfg'}


@pytest.mark.parametrize(
    'subnet, kind', [('4x3-4-6-3', ResNet), ('8x3-4-6-3', ResNet), ('6x3-4-6-3', BottleneckResNet)]
)
@torch.no_grad()
def test_either_class_gives_the_same(narrow, subnet, kind):
    extracted = plain(narrow, subnet)
    assert type(extracted) is kind
    image = torch.randn(1, 3, 64, 64)
    assert_close(narrow(image, Subnet.parse(subnet)), extracted(image), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    'options',
    [
        dict(in_channels=1),
        dict(strides=(1, 2, 1, 1)),
        dict(num_groups=2),
        dict(stem_channels=16),
        dict(deep_stem=True),
        dict(avg_down=True),
        dict(frozen_stages=0, norm_eval=True),
        dict(frozen_stages=2, deep_stem=True, avg_down=True, in_channels=1, strides=(1, 2, 2, 1)),
    ],
    ids=str,
)
@torch.no_grad()
def test_options_survive_extraction(make, options):
    network = make(**options)
    subnet = Subnet(12, (1, 1, 3, 1))
    extracted = plain(network, subnet)
    image = torch.randn(2, network.in_channels, 48, 80)
    assert_close(network(image, subnet), extracted(image), rtol=1e-5, atol=1e-5)
    assert network.cost(subnet).params == sum(param.numel() for param in extracted.parameters())


@pytest.mark.slow
@torch.no_grad()
def test_full_size(randomise):
    network = randomise(ElasticResNet())
    network.eval()
    image = torch.randn(1, 3, 224, 224)
    for name in ('r50', 'r101', 'r152', '96x3-6-20-3', '128x3-4-6-3', '128x3-8-36-3'):
        subnet = network.space.parse(name)
        extracted = plain(network, subnet)
        assert type(extracted) is (BottleneckResNet if subnet.width == 96 else ResNet)
        assert sum(param.numel() for param in extracted.parameters()) == network.cost(subnet).params
        found, expected = network.plain_features(extracted, image), network.extract_features(image, subnet)
        assert expected.cls.std() > 1e-3
        assert_close(found, expected, rtol=0, atol=1e-4)


# --- options of mmpretrain's class ---


@pytest.mark.parametrize('deep_stem', [False, True])
@pytest.mark.parametrize('frozen', [-1, 0, 2, 4])
def test_frozen_stages_are_those_that_mmpretrain_freezes(make, frozen, deep_stem):
    network = make(frozen_stages=frozen, deep_stem=deep_stem)
    network.train()
    extracted = plain(network, network.space.largest)
    extracted.train()
    trains = {name for name, param in network.named_parameters() if param.requires_grad}
    expected = {name for name, param in extracted.named_parameters() if param.requires_grad}
    assert trains - {'mask_token'} == expected
    assert [getattr(network, name).training for name in network.res_layers] == [i >= frozen for i in range(4)]


@pytest.mark.parametrize('size', [(64, 64), (50, 90)])
def test_flops_with_a_deep_stem(make, size):
    network = make(deep_stem=True, avg_down=True)
    subnet = network.space.largest
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        plain(network, subnet)(torch.zeros(1, 3, *size))
    assert network.cost(subnet, size).flops == counter.get_total_flops()


def test_learning_rate_of_a_deep_stem(make):
    network = make(deep_stem=True)
    assert network.stem_modules == ('stem',)
    assert {network.get_layer_depth(name)[0] for name, _ in network.named_parameters() if name.startswith('stem')} == {
        0
    }
