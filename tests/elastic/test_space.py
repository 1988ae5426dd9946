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
