import json
from collections import Counter

import pytest

from poa_mm.elastic import Subnet, SubnetDeck, SubnetSpace

SPACE = SubnetSpace((32, 48, 64), (2, 3, 4))
ONE_PASS = 35  # 9 + 6 + 3 + 6 + 4 + 2 + 3 + 2 cards


def deal(deck, count=ONE_PASS):
    return [deck.deal() for _ in range(count)]


def test_one_pass_deals_every_subnet_its_multiplicity(golden):
    _, info = golden('vit_step')
    expected = {Subnet.parse(name): copies for name, copies in info['sampling_multiplicity'].items()}
    del expected[SPACE.largest]
    deck = SubnetDeck(SPACE)
    assert len(deck) == sum(expected.values()) == ONE_PASS
    for _ in range(3):
        assert Counter(deal(deck)) == expected


def test_the_largest_is_never_dealt():
    assert SPACE.largest not in deal(SubnetDeck(SPACE, select_scale=1), 4 * 8)


def test_select_scale_reaches_the_multiplicity():
    assert Counter(deal(SubnetDeck(SPACE, select_scale=1), 8)) == {s: 1 for s in SPACE if s != SPACE.largest}


def test_every_pass_has_an_order_of_its_own():
    deck = SubnetDeck(SPACE)
    first, second = deal(deck), deal(deck)
    assert first != second
    assert first != sorted(first)


def test_same_seed_same_cards():
    assert deal(SubnetDeck(SPACE, seed=3), 80) == deal(SubnetDeck(SPACE, seed=3), 80)


def test_order_is_the_same_on_every_machine():
    """Pins the first cards: resuming elsewhere, or with a newer Python, has to go on with the same deck."""
    assert ' '.join(map(str, deal(SubnetDeck(SPACE), 6))) == '32x3 32x2 64x2 64x3 32x2 32x4'


@pytest.mark.parametrize('other', [dict(seed=1), dict(rank=1), dict(rank=31)])
def test_seed_and_rank_matter(other):
    assert deal(SubnetDeck(SPACE)) != deal(SubnetDeck(SPACE, **other))


def test_sync_deals_the_same_on_every_rank():
    first = deal(SubnetDeck(SPACE, sync=True), 80)
    assert first == deal(SubnetDeck(SPACE, rank=5, sync=True), 80)
    assert first == deal(SubnetDeck(SPACE, rank=0), 80)


@pytest.mark.parametrize('dealt', [0, 1, 17, ONE_PASS - 1, ONE_PASS, 2 * ONE_PASS + 5])
@pytest.mark.parametrize('rank', [0, 1])
def test_restored_deck_goes_on(dealt, rank):
    """Whatever rank's state was saved, every rank goes on with its own cards."""
    uninterrupted = SubnetDeck(SPACE, seed=7, rank=rank)
    deal(uninterrupted, dealt)
    saving = SubnetDeck(SPACE, seed=7, rank=0)
    deal(saving, dealt)
    restored = SubnetDeck(SPACE, seed=0, rank=rank)  # the seed comes with the state
    deal(restored, 3)
    restored.load_state_dict(json.loads(json.dumps(saving.state_dict())))
    assert deal(restored, 80) == deal(uninterrupted, 80)


def test_state_is_the_same_on_every_rank():
    decks = [SubnetDeck(SPACE, seed=7, rank=rank) for rank in range(3)]
    for deck in decks:
        deal(deck, 40)
    assert decks[0].state_dict() == decks[1].state_dict() == decks[2].state_dict()


@pytest.mark.parametrize('missing', ['seed', 'dealt'])
def test_incomplete_state_is_refused(missing):
    state = SubnetDeck(SPACE).state_dict()
    del state[missing]
    with pytest.raises(ValueError, match=f'lacks.*{missing}'):
        SubnetDeck(SPACE).load_state_dict(state)


def test_space_of_one_subnet_has_nothing_to_deal():
    with pytest.raises(ValueError, match='widths 64; depths 4'):
        SubnetDeck(SubnetSpace([64], [4]))


def test_deck_of_a_depth_by_stage():
    space = SubnetSpace((8, 12, 16), ([1], [1, 2], [2, 3, 4], [1]))
    deck = SubnetDeck(space, select_scale=(1, 2))
    dealt = Counter(deal(deck, len(deck)))
    assert set(dealt) == set(space) - {space.largest}
    assert len(deck) == sum(dealt.values()) == 3 * (2 + 2 + 1 + 2 + 1 + 1) - 1
    restored = SubnetDeck(space, select_scale=(1, 2))
    restored.load_state_dict(json.loads(json.dumps(deck.state_dict())))
    assert deal(restored, 30) == deal(deck, 30)


def test_deck_of_patch_sizes():
    """Every patch size is dealt as often; full size at another patch size is a card, the whole network is none."""
    space = SubnetSpace((32, 48, 64), (2, 3, 4), patches=(4, 8, 16), native=8)
    deck = SubnetDeck(space)
    dealt = Counter(deal(deck, len(deck)))
    assert set(dealt) == set(space) - {space.largest}
    assert {patch: sum(n for s, n in dealt.items() if s.patch == patch) for patch in (4, 16, None)} == {
        4: ONE_PASS + 1,
        16: ONE_PASS + 1,
        None: ONE_PASS,
    }
    restored = SubnetDeck(space, rank=3)
    restored.load_state_dict(json.loads(json.dumps(deck.state_dict())))
    other = SubnetDeck(space, rank=3)
    deal(other, len(deck))
    assert deal(restored, 30) == deal(other, 30) != deal(deck, 30)
    synced = [deal(SubnetDeck(space, rank=rank, sync=True), 200) for rank in range(3)]
    assert synced[0] == synced[1] == synced[2]


def test_deck_of_hundreds():
    space = SubnetSpace(range(384, 1025, 64), range(12, 25), patches=(8, 16, 32), native=16)
    deck = SubnetDeck(space)
    assert len(space) == 429 and set(deal(deck, len(deck))) == set(space) - {space.largest}
