import itertools
import re

import pytest
from scorecards import make_card

from poa_mm.elastic import SubnetSpace
from poa_mm.evaluation.selection import LIMITS, check_choice, choose, describe_choice, in_unit, parse_limit, value_of

CONDITION = 'torch-cpu-b1'
CARD = make_card(conditions=(CONDITION, 'torch-cpu-b8'), protocols=('knn', 'linear'), predicted=['64x4'])


@pytest.mark.parametrize(
    ('limit', 'text', 'value'),
    [
        ('latency', '20', 20),
        ('latency', '20 ms', 20),
        ('latency', '0.5s', 500),
        ('latency', '1e3', 1000),
        ('size', '1e-1GB', 1e8),
        ('params', '30M', 30e6),
        ('params', '1.2B', 1.2e9),
        ('params', '86000', 86000),
        ('size', '60MB', 60e6),
        ('size', '60mib', 60 * 2**20),
        ('memory', '.5GB', 5e8),
    ],
)
def test_limits_are_read_in_their_units(limit, text, value):
    assert parse_limit(limit, text) == pytest.approx(value)


@pytest.mark.parametrize(
    ('limit', 'text'),
    [
        ('latency', '20M'),
        ('latency', '-3'),
        ('latency', '0'),
        ('latency', 'fast'),
        ('latency', 'nan'),
        ('params', '30MB'),
        ('size', '60'),  # bytes are never meant
        ('size', '1e999MB'),
        ('latency', '1e'),
        ('size', ''),
    ],
)
def test_other_limits_are_refused(limit, text):
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        parse_limit(limit, text)


def brute_force(card, limits, by, condition):
    """The best by comparing every pair."""
    fitting = [
        row
        for row in card['subnets']
        if all(value_of(row, limit, condition) <= allowed for limit, allowed in limits.items())
    ]
    for row in fitting:
        others = (other for other in fitting if other is not row)
        if all(
            (row['scores'][by], -row['costs'][condition]['median_ms'])
            > (other['scores'][by], -other['costs'][condition]['median_ms'])
            for other in others
        ):
            return row['subnet']
    return None


@pytest.mark.parametrize('by', ['knn', 'linear'])
@pytest.mark.parametrize('condition', CARD['conditions'])
def test_the_choice_is_the_best_of_all(by, condition):
    values = {limit: sorted(value_of(row, limit, condition) for row in CARD['subnets']) for limit in LIMITS}
    for latency, params in itertools.product(values['latency'][::3], values['params'][::3]):
        limits = dict(latency=latency, params=params)
        choice = choose(CARD, limits, by, condition)
        found = choice.ranked[0]['subnet'] if choice.ranked else None
        assert found == brute_force(CARD, limits, by, condition)
        assert len(choice.ranked) + len(choice.misses) == len(CARD['subnets'])


def test_all_465_are_looked_at():
    card = make_card(SubnetSpace([64, 96, 128], [[3], range(4, 9), range(6, 37), [3]]))
    choice = choose(card, {})
    assert len(choice.ranked) == 465 and not choice.misses
    assert choice.ranked[0]['scores']['knn'] == max(row['scores']['knn'] for row in card['subnets'])
    assert choice.largest['subnet'] == '128x3-8-36-3'


def test_a_limit_is_within_itself():
    row = CARD['subnets'][5]
    limits = {limit: value_of(row, limit, CONDITION) for limit in LIMITS}
    assert row in choose(CARD, limits).ranked


def test_of_equal_scores_the_faster_is_better():
    row, other = ({**CARD['subnets'][0], 'subnet': name} for name in ('a', 'b'))
    slow = {**other, 'costs': {CONDITION: {**other['costs'][CONDITION], 'median_ms': 99.0}}}
    assert choose({**CARD, 'subnets': [slow, row]}, {}).ranked[0]['subnet'] == 'a'


def test_nothing_fits_and_by_how_much():
    smallest = CARD['subnets'][0]
    allowed = value_of(smallest, 'params', CONDITION) / 1.1
    choice = choose(CARD, dict(params=allowed, latency=1000))
    assert not choice.ranked and choice.misses[0][0] is smallest
    lines = describe_choice(choice, 'knn', CONDITION)
    assert 'nothing fits' in lines[0]
    assert lines[1].strip().startswith('48x3: parameters 0.131 M, 0.0119 M') and '(10.0 %) too much' in lines[1]
    assert len(lines) == 4


def test_what_is_not_known_does_not_fit():
    row = CARD['subnets'][0]
    unknown = {**row, 'costs': {CONDITION: {**row['costs'][CONDITION], 'peak_memory': None}}}
    card = {**CARD, 'subnets': [unknown, CARD['subnets'][1]]}
    choice = choose(card, dict(memory=1e12))
    assert [row['subnet'] for row in choice.ranked] == [CARD['subnets'][1]['subnet']]
    assert 'peak memory is not known' in str(choice.misses[0][1][0])


def test_description_compares_with_the_largest_and_tells_measured_from_predicted():
    choice = choose(CARD, dict(params=value_of(CARD['subnets'][5], 'params', CONDITION)))
    lines = describe_choice(choice, 'knn', CONDITION, runners_up=2)
    assert lines[0].startswith(choice.ranked[0]['subnet']) and 'knn' in lines[0]
    assert 'against the largest, 96x6' in lines[1] and 'points of knn' in lines[1] and '% of its latency' in lines[1]
    assert [line.split()[0] for line in lines[2:]] == ['runner-up', 'runner-up']
    said = ''.join(describe_choice(choose(CARD, {}), 'knn', CONDITION, runners_up=99))
    assert said.count('(latency predicted)') == 1 and said.count('(latency measured)') == 15
    assert '48x3 (tiny)' in said


def test_what_the_scorecard_has_not_is_refused():
    with pytest.raises(ValueError, match="score 'f1' is not in the scorecard; it has knn, linear"):
        check_choice(CARD, 'f1', None)
    with pytest.raises(ValueError, match="condition 'torch-cuda-b1' is not in the scorecard; it has torch-cpu-b1"):
        choose(CARD, {}, condition='torch-cuda-b1')
    with pytest.raises(ValueError, match="limit 'flops' is not one of"):
        choose(CARD, dict(flops=3))


def test_numbers_for_people():
    assert in_unit('params', 30e6) == '30 M' and in_unit('latency', 0.0123) == '0.0123 ms'
    assert in_unit('size', 1234.5e6) == '1234 MB'


@pytest.mark.parametrize('limit', [float('nan'), float('inf'), 0, -1, '20', None])
def test_a_limit_that_is_no_positive_number_is_refused(limit):
    card = dict(protocols=['knn'], conditions=['torch-cpu-b1'], subnets=[])
    with pytest.raises(ValueError, match=r'limit latency .* is not a positive number'):
        choose(card, {'latency': limit})
