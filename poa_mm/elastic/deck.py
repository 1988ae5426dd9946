"""Dealing the elastic student of each step."""

from __future__ import annotations

import random
from collections.abc import Sequence

from .space import SubnetSpace
from .subnet import Subnet


class SubnetDeck:
    """A shuffled deck of subnets, dealt without replacement and reshuffled when empty.

    Each subnet lies in the deck :meth:`SubnetSpace.multiplicity` times; the largest, which is the
    intact student, is left out. By default every rank deals from a deck of its own, so that one step
    on 32 GPUs trains 32 subnets, as the authors' code does.

    The card of a step follows from ``(seed, rank, cards dealt so far)`` alone. The state is therefore
    two integers that are the same on every rank: what rank 0 saves restores all of them.

    Args:
        space: What to deal from.
        seed: Seed of all shuffles. Default: 0.
        rank: Rank whose deck this is. Default: 0.
        sync: Deal the same cards on every rank. Default: False.
        select_scale: Weight of the smallest size against the largest, or a pair of it for widths and depths.
            The authors use 3 for ViT, 2 for Swin and (1, 2) for ResNet. Default: 3.

    Raises:
        ValueError: If the space holds nothing but its largest subnet.
    """

    def __init__(
        self,
        space: SubnetSpace,
        seed: int = 0,
        rank: int = 0,
        sync: bool = False,
        select_scale: float | Sequence[float] = 3.0,
    ):
        self.space = space
        self.seed = seed
        self.rank = 0 if sync else rank
        self.dealt = 0
        self.cards = tuple(
            subnet
            for subnet in space
            if subnet != space.largest
            for _ in range(space.multiplicity(subnet, select_scale))
        )
        if not self.cards:
            raise ValueError(f'nothing to deal: the space holds only its largest subnet ({space.describe()})')
        self._shuffle_of: tuple[int, int] | None = None
        self._shuffled: list[Subnet] = []

    def __len__(self) -> int:
        return len(self.cards)

    def deal(self) -> Subnet:
        """The next card."""
        self.dealt += 1
        return self._card(self.dealt - 1)

    @property
    def last(self) -> Subnet | None:
        """The card dealt last; None before the first."""
        return self._card(self.dealt - 1) if self.dealt else None

    def _card(self, number: int) -> Subnet:
        shuffle, position = divmod(number, len(self.cards))
        if self._shuffle_of != (self.seed, shuffle):
            self._shuffled = list(self.cards)
            # Seeding with text goes through SHA-512: the same on every Python and platform.
            random.Random(f'subnet-deck/{self.seed}/{self.rank}/{shuffle}').shuffle(self._shuffled)
            self._shuffle_of = (self.seed, shuffle)
        return self._shuffled[position]

    def state_dict(self) -> dict[str, int]:
        return {'seed': self.seed, 'dealt': self.dealt}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where ``state`` was taken.

        Raises:
            ValueError: If ``state`` lacks an entry.
        """
        missing = {'seed', 'dealt'} - set(state)
        if missing:
            raise ValueError(f'deck state lacks {sorted(missing)}; got {sorted(state)}')
        self.seed, self.dealt = int(state['seed']), int(state['dealt'])
