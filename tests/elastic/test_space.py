import pytest

from poa_mm.elastic import Subnet, SubnetSpace


@pytest.fixture
def vit_large():
    """The paper's space of ViT-L/16."""
    return SubnetSpace(range(384, 1025, 64), range(12, 25), dict(small='384x12', base=Subnet(768, 12), large='1024x24'))


def test_vit_large_has_143_subnets(vit_large):
    subnets = list(vit_large)
    assert len(vit_large) == len(subnets) == len(set(subnets)) == 143
    assert all(subnet in vit_large for subnet in subnets)


def test_subnets_come_in_order_the_largest_last():
    space = SubnetSpace([64, 32], (4, 2, 3))
    assert [str(subnet) for subnet in space] == ['32x2', '32x3', '32x4', '64x2', '64x3', '64x4']
    assert (space.smallest, space.largest) == (Subnet(32, 2), Subnet(64, 4))


@pytest.mark.parametrize('subnet', [Subnet(400, 12), Subnet(384, 11), Subnet(320, 12), (384, 12), '384x12', None])
def test_not_contained(vit_large, subnet):
    assert subnet not in vit_large


@pytest.mark.parametrize(
    'name, subnet',
    [
        ('small', Subnet(384, 12)),
        ('base', Subnet(768, 12)),
        ('large', Subnet(1024, 24)),
        ('448x13', Subnet(448, 13)),
        (Subnet(448, 13), Subnet(448, 13)),
    ],
)
def test_parse(vit_large, name, subnet):
    assert vit_large.parse(name) == subnet


@pytest.mark.parametrize('name', ['400x12', '384x25', 'giant', 'Small', '', Subnet(384, 11)])
def test_parse_error_names_what_is_valid(vit_large, name):
    with pytest.raises(ValueError) as error:
        vit_large.parse(name)
    message = str(error.value)
    assert str(name) in message
    assert 'widths 384, 448, ' in message and 'depths 12, 13, ' in message and 'small=384x12' in message


@pytest.mark.parametrize('sizes', [[], [0, 1], [-16, 32], [32, 32], [32.0], ['32']])
@pytest.mark.parametrize('name', ['widths', 'depths'])
def test_bad_sizes_are_refused(name, sizes):
    with pytest.raises(ValueError, match=f'{name} must be distinct positive integers'):
        SubnetSpace(**{'widths': [32], 'depths': [2], name: sizes})


def test_alias_has_to_lie_in_the_space():
    with pytest.raises(ValueError, match='64x2'):
        SubnetSpace([16, 32], [2], dict(large='64x2'))


def test_multiplicity_matches_golden(golden):
    _, info = golden('vit_step')
    space = SubnetSpace((32, 48, 64), (2, 3, 4))
    assert {str(subnet): space.multiplicity(subnet, 3) for subnet in space} == info['sampling_multiplicity']


@pytest.mark.parametrize(
    'name, copies',
    [
        ('384x12', 9),  # 3 * 3
        ('1024x24', 1),  # 1 * 1
        ('384x24', 3),
        ('1024x12', 3),
        ('704x18', 4),  # both in the middle: 2 * 2
        ('768x12', 5),  # 1.8 * 3 = 5.4
        ('448x13', 8),  # 2.8 * 17/6 = 7.9
    ],
)
def test_multiplicity_of_vit_large_by_hand(vit_large, name, copies):
    assert vit_large.multiplicity(vit_large.parse(name), select_scale=3) == copies


def test_scale_one_makes_all_equal(vit_large):
    assert {vit_large.multiplicity(subnet, select_scale=1) for subnet in vit_large} == {1}


def test_single_width_weighs_by_depth_alone():
    space = SubnetSpace([64], [2, 3, 4])
    assert [space.multiplicity(subnet, 3) for subnet in space] == [3, 2, 1]


def test_multiplicity_outside_is_refused(vit_large):
    with pytest.raises(ValueError, match='400x12 is not in the space'):
        vit_large.multiplicity(Subnet(400, 12))


# --- a depth of its own for each stage ---


@pytest.fixture
def resnet152():
    """The paper's space of ResNet-152 with mid channels up to twice as wide."""
    return SubnetSpace((64, 96, 128), ([3], range(4, 9), range(6, 37), [3]), dict(r50='64x3-4-6-3'))


def test_resnet152_has_465_subnets(resnet152):
    subnets = list(resnet152)
    assert len(resnet152) == len(subnets) == len(set(subnets)) == 465
    assert subnets == sorted(subnets)
    assert all(resnet152.parse(str(subnet)) == subnet for subnet in subnets)
    assert str(subnets[0]) == str(resnet152.smallest) == '64x3-4-6-3'
    assert str(subnets[-1]) == str(resnet152.largest) == '128x3-8-36-3'


@pytest.mark.parametrize('name', ['64x3-4-5-3', '64x3-4-6', '64x13', '80x3-4-6-3', '64x2-4-6-3', 'r101'])
def test_stages_are_described_by_their_ranges(resnet152, name):
    with pytest.raises(ValueError) as error:
        resnet152.parse(name)
    assert str(error.value).endswith('widths 64, 96, 128; depths 3-(4..8)-(6..36)-3; aliases r50=64x3-4-6-3')
    assert SubnetSpace([64], (1, [4, 2], (6, 12, 36))).describe() == 'widths 64; depths 1-(2, 4)-(6, 12, 36)'


@pytest.mark.parametrize('stages', [([3], []), ([3], [0, 1]), ([3], [2, 2]), ([3], [2.0]), ([3], ['2'])])
def test_bad_stages_are_refused(stages):
    with pytest.raises(ValueError, match=r'depths\[1\] must be distinct positive integers'):
        SubnetSpace([64], stages)


def test_of_a_depth_by_stage_the_sum_counts(resnet152):
    copies = {str(subnet): resnet152.multiplicity(subnet, (1, 2)) for subnet in resnet152}
    assert copies['64x3-4-6-3'] == copies['128x3-4-6-3'] == 2 and copies['64x3-8-36-3'] == 1
    # 16 to 50 blocks: 32 are one step nearer to the few, 34 to the many
    assert (copies['64x3-4-22-3'], copies['64x3-8-18-3'], copies['96x3-4-24-3']) == (2, 2, 1)


def test_a_pair_of_scales_is_for_widths_and_depths():
    space = SubnetSpace((32, 48, 64), (2, 3, 4))
    for pair, expected in (((3, 1), '3 3 3 2 2 2 1 1 1'), ([1, 3], '3 2 1 3 2 1 3 2 1')):
        assert ' '.join(str(space.multiplicity(subnet, pair)) for subnet in space) == expected
    assert [space.multiplicity(subnet, (3, 3)) for subnet in space] == [space.multiplicity(subnet) for subnet in space]


# --- patch sizes ---


@pytest.fixture
def patches():
    return SubnetSpace((32, 48), (2, 3), dict(small='32x3', coarse='48x3p32'), patches=(32, 8, 16), native=16)


def test_patch_sizes_are_a_third_dimension(patches):
    subnets = list(patches)
    assert len(patches) == len(subnets) == len(set(subnets)) == 2 * 2 * 3
    assert subnets == sorted(subnets)
    assert [str(subnet) for subnet in subnets[:4]] == ['32x2p8', '32x2p32', '32x2', '32x3p8']
    assert (patches.smallest, patches.largest, subnets[-1]) == (Subnet(32, 2), Subnet(48, 3), Subnet(48, 3))
    assert patches.describe() == (
        'widths 32, 48; depths 2, 3; patch sizes 8, 16, 32 (16 is native); aliases small=32x3, coarse=48x3p32'
    )


def test_the_native_patch_size_has_one_name(patches):
    for name in ('32x2', '32x2p16', Subnet(32, 2, 16), Subnet(32, 2)):
        assert patches.parse(name) == Subnet(32, 2) and str(patches.parse(name)) == '32x2'
    assert Subnet(32, 2, 16) not in patches and Subnet(32, 2, 8) in patches
    assert patches.parse('coarse') == Subnet(48, 3, 32)
    assert SubnetSpace([32], [2], native=16).parse('32x2p16') == Subnet(32, 2)


@pytest.mark.parametrize('name', ['32x2p4', '32x4p8', Subnet(40, 2, 8), Subnet(32, 2, 0)])
def test_other_patch_sizes_are_refused(patches, name):
    with pytest.raises(ValueError, match=rf'{name} is not in the space; valid here: .*patch sizes 8, 16, 32 \(16 is'):
        patches.parse(name)


def test_a_space_without_choice_has_no_patch_sizes(vit_large):
    assert vit_large.patch_sizes == () and 'patch' not in vit_large.describe()
    with pytest.raises(ValueError, match='384x12p32 is not in the space'):
        vit_large.parse('384x12p32')


@pytest.mark.parametrize('sizes', [[], [0, 16], [16, 16], [16.0], ['16']])
def test_bad_patch_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match='patch sizes must be distinct positive integers'):
        SubnetSpace([32], [2], patches=sizes, native=16)


@pytest.mark.parametrize('native', [16, None])
def test_patch_sizes_hold_the_native_one(native):
    with pytest.raises(ValueError, match=rf'\[8, 32\] must hold the native one, {native}'):
        SubnetSpace([32], [2], patches=[8, 32], native=native)


def test_multiplicity_is_the_same_for_all_patch_sizes(patches):
    copies = {str(subnet): patches.multiplicity(subnet) for subnet in patches}
    assert copies['32x2'] == copies['32x2p8'] == copies['32x2p32'] == 9
    assert copies['48x3'] == copies['48x3p8'] == 1


@pytest.mark.parametrize('subnet', [Subnet(32, 2), Subnet(32, 2, 8), Subnet(64, (3, 4, 6, 3))])
def test_space_of_one_subnet(subnet):
    space = SubnetSpace.of(subnet)
    assert list(space) == [subnet] and space.largest == space.smallest == space.parse(str(subnet)) == subnet
    with pytest.raises(ValueError, match='is not in the space'):
        space.parse('32x2p4')
