"""One sub-network: the spec that travels through ``forward``."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Subnet:
    """Size of one sub-network; immutable, hashable, printed and parsed as ``"384x12"``.

    Args:
        width: Channels of the token embedding.
        depth: Number of blocks kept.
    """

    width: int
    depth: int

    def __str__(self) -> str:
        return f'{self.width}x{self.depth}'

    @classmethod
    def parse(cls, text: str) -> Subnet:
        """Read ``"WIDTHxDEPTH"``.

        Raises:
            ValueError: If ``text`` has another form.
        """
        match = re.fullmatch(r'\s*(\d+)\s*x\s*(\d+)\s*', str(text))
        if match is None:
            raise ValueError(f"subnet {text!r} is not of the form WIDTHxDEPTH, such as '384x12'")
        return cls(*map(int, match.groups()))


def kept_blocks(depth: int, max_depth: int) -> tuple[int, ...]:
    """Indices of the blocks that a subnet of ``depth`` keeps of ``max_depth``, evenly spread.

    ``floor((max_depth - 1) * j / (depth - 1))`` for ``j = 0 .. depth - 1`` (POA, Sec. 3.2), so the
    first and the last block always stay; a single block is the first.

    Raises:
        ValueError: If ``depth`` is not in ``1 .. max_depth``.
    """
    if not 1 <= depth <= max_depth:
        raise ValueError(f'depth {depth} is not in 1..{max_depth}')
    if depth == 1:
        return (0,)
    return tuple((max_depth - 1) * j // (depth - 1) for j in range(depth))
