import re
from dataclasses import FrozenInstanceError
from fractions import Fraction
from math import floor

import pytest

from poa_mm.elastic import Subnet, kept_blocks


@pytest.mark.parametrize('subnet', [Subnet(384, 12), Subnet(1024, 24), Subnet(1, 1), Subnet(64, (3, 4, 23, 3))])
def test_printed_subnet_is_parsed_back(subnet):
    assert Subnet.parse(str(subnet)) == subnet


def test_form_is_width_x_depth():
    assert str(Subnet(width=384, depth=12)) == '384x12'
    assert Subnet.parse(' 384 x 12\n') == Subnet(width=384, depth=12)


def test_depth_by_stage_is_joined_with_dashes():
    assert str(Subnet(width=64, depth=(3, 4, 6, 3))) == '64x3-4-6-3'
    assert Subnet.parse('64x3-4-6-3') == Subnet(width=64, depth=(3, 4, 6, 3))
    assert {Subnet(64, (3, 4, 6, 3)): 'r50'}[Subnet.parse('64x3-4-6-3')] == 'r50'
    assert Subnet(64, (3, 4, 6, 3)) < Subnet(64, (3, 4, 23, 3)) < Subnet(64, (3, 5, 6, 3)) < Subnet(96, (3, 4, 6, 3))


@pytest.mark.parametrize(
    'text',
    [
        *('', '384', '384x', 'x12', '384X12', '-384x12', '38.4x12', '384x12x3', 'small'),
        *('64x3-', '64x-3', '64x3--4', '64x(3, 4)', '64-3x4'),
    ],
)
def test_other_forms_are_refused_with_an_example(text):
    with pytest.raises(ValueError, match=rf"'{re.escape(text)}' is not of the form WIDTHxDEPTH.*'384x12'"):
        Subnet.parse(text)


def test_subnet_is_an_immutable_key():
    subnet = Subnet(384, 12)
    with pytest.raises(FrozenInstanceError):
        subnet.width = 768
    assert {subnet: 'small'}[Subnet(384, 12)] == 'small'


def test_order_is_by_width_then_depth():
    assert sorted([Subnet(48, 2), Subnet(32, 4), Subnet(32, 3)]) == [Subnet(32, 3), Subnet(32, 4), Subnet(48, 2)]


@pytest.mark.parametrize(
    'depth, max_depth, kept',
    [
        (1, 4, (0,)),
        (2, 4, (0, 3)),
        (3, 4, (0, 1, 3)),
        (4, 4, (0, 1, 2, 3)),
        (3, 6, (0, 2, 5)),
        (12, 24, (0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 23)),
        (13, 24, (0, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23)),
        (23, 24, (*range(22), 23)),
        (1, 1, (0,)),
    ],
)
def test_kept_blocks_by_hand(depth, max_depth, kept):
    assert kept_blocks(depth, max_depth) == kept


@pytest.mark.parametrize('max_depth', [2, 4, 12, 24, 36])
def test_kept_blocks_follow_the_formula(max_depth):
    for depth in range(2, max_depth + 1):
        kept = kept_blocks(depth, max_depth)
        assert kept == tuple(floor(Fraction((max_depth - 1) * j, depth - 1)) for j in range(depth))
        assert len(set(kept)) == depth
        assert (kept[0], kept[-1]) == (0, max_depth - 1)


@pytest.mark.parametrize('depth', [-1, 0, 5])
def test_impossible_depth_names_the_valid_ones(depth):
    with pytest.raises(ValueError, match=rf'depth {depth} is not in 1\.\.4'):
        kept_blocks(depth, 4)


# --- patch sizes ---


@pytest.mark.parametrize('subnet', [Subnet(384, 12, 32), Subnet(1, 1, 1), Subnet(96, (1, 2), 4)])
def test_printed_patch_size_is_parsed_back(subnet):
    assert Subnet.parse(str(subnet)) == subnet
    assert Subnet.parse(f' {subnet} ') == subnet != Subnet(subnet.width, subnet.depth)


def test_a_patch_size_follows_the_depth():
    assert str(Subnet(384, 12, patch=32)) == '384x12p32'
    assert str(Subnet(384, 12)) == '384x12' == str(Subnet(384, 12, None))
    assert Subnet.parse('384 x 12 p 8') == Subnet(384, 12, 8)
    assert Subnet.parse('384x12').patch is None


@pytest.mark.parametrize(
    'text', ['384x12p', '384x12P32', '384p32', '384p32x12', '384x12p-8', '384x12p8p8', '384x12p8x8']
)
def test_other_forms_of_a_patch_size_are_refused_with_an_example(text):
    with pytest.raises(
        ValueError, match=rf"'{re.escape(text)}' is not of the form .* or WIDTHxDEPTHpPATCH.*'384x12p32'"
    ):
        Subnet.parse(text)


def test_the_native_patch_size_comes_last():
    ordered = [Subnet(32, 2, 8), Subnet(32, 2, 32), Subnet(32, 2), Subnet(32, 3, 8), Subnet(48, 2, 8), Subnet(48, 2)]
    assert sorted(set(ordered)) == ordered
    assert Subnet(32, 2, 32) < Subnet(32, 2) and Subnet(32, 2) > Subnet(32, 2, 8) and Subnet(32, 2) <= Subnet(32, 2)
    with pytest.raises(TypeError):
        assert Subnet(32, 2) < '32x3'
