import pytest

from poa_mm.elastic import SubnetSpace
from poa_mm.study import ROWS, Unit, plan
from poa_mm.study.rows import WARM_ROWS, three_sizes

SPACE = SubnetSpace([48, 64, 80, 96], [2, 3, 4])
SIZES = ['48x2', '80x3', '96x4']


def test_three_sizes_of_a_space():
    assert list(map(str, three_sizes(SPACE))) == SIZES
    assert list(map(str, three_sizes(SubnetSpace([8], [1])))) == ['8x1']


def test_the_whole_study():
    units = plan({'a': SPACE, 'b': SPACE}, ROWS, [0, 1, 2], ['a', 'b'])
    assert len(units) == len(set(units)) == 2 * (1 + 3 * (1 + 1 + 7 + len(WARM_ROWS) + 3 * 3))
    assert {unit.row for unit in units} == set(ROWS)
    assert [unit for unit in units if unit.row == 'pixels'] == [Unit('a', 'pixels', 0), Unit('b', 'pixels', 0)]


def test_slices_come_with_and_after_the_network_that_they_are_cut_from():
    assert plan({'a': SPACE}, ['slices'], [5], ['a']) == [Unit('a', 'alone', 5, '96x4'), Unit('a', 'slices', 5)]
    assert plan({'a': SPACE}, ['warm_5'], [5], ['a']) == [Unit('a', 'alone', 5, '96x4'), Unit('a', 'warm_5', 5)]
    both = plan({'a': SPACE}, ['slices', 'alone'], [5], ['a'])
    assert both == [*(Unit('a', 'alone', 5, size) for size in SIZES), Unit('a', 'slices', 5)]


def test_first_seeds_come_first():
    seeds = [unit.seed for unit in plan({'a': SPACE}, ROWS, [4, 2], ['a']) if unit.row != 'pixels']
    assert seeds == sorted(seeds, reverse=True)


@pytest.mark.parametrize('rows, data, name', [(['poa', 'pao'], ['a'], 'pao'), (['poa'], ['c'], 'c')])
def test_what_does_not_exist_is_refused(rows, data, name):
    with pytest.raises(ValueError, match=f"'{name}' is not one of"):
        plan({'a': SPACE}, rows, [0], data)


def test_names_of_pieces_of_work_differ(tmp_path):
    units = plan({'a': SPACE, 'b': SPACE}, ROWS, [0, 1, 2], ['a', 'b'])
    assert len({unit.folder(tmp_path) for unit in units}) == len(units)
