"""One sub-network: the spec that travels through ``forward``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import total_ordering


@total_ordering
@dataclass(frozen=True)
class Subnet:
    """Size of one sub-network; immutable and hashable.

    Printed and parsed as ``"384x12"``, ``"64x3-4-6-3"`` or, with a patch size, ``"384x12p32"``. The order is by width,
    by depth and by patch size, the native one last.

    Args:
        width: Channels of the token embedding; of a ResNet, mid channels of the first stage's bottlenecks.
        depth: Number of blocks kept; of a network with several elastic stages, a tuple with that of each stage.
        patch: Height and width of a patch in pixels. Default: None, the native one of the supernet.
    """

    width: int
    depth: int | tuple[int, ...]
    patch: int | None = None

    def __str__(self) -> str:
        depth = self.depth if isinstance(self.depth, int) else '-'.join(map(str, self.depth))
        return f'{self.width}x{depth}' if self.patch is None else f'{self.width}x{depth}p{self.patch}'

    def __lt__(self, other: Subnet) -> bool:
        if not isinstance(other, Subnet):
            return NotImplemented
        mine, its = ((s.width, s.depth, s.patch is None, s.patch or 0) for s in (self, other))
        return mine < its

    @classmethod
    def parse(cls, text: str) -> Subnet:
        """Read ``"WIDTHxDEPTH"``, where a depth by stage is joined with dashes, or ``"WIDTHxDEPTHpPATCH"``.

        Raises:
            ValueError: If ``text`` has another form.
        """
        match = re.fullmatch(r'\s*(\d+)\s*x\s*(\d+(?:-\d+)*)\s*(?:p\s*(\d+)\s*)?', str(text))
        if match is None:
            raise ValueError(
                f"subnet {text!r} is not of the form WIDTHxDEPTH, such as '384x12' or '64x3-4-6-3', or "
                "WIDTHxDEPTHpPATCH, such as '384x12p32'"
            )
        depth = tuple(map(int, match[2].split('-')))
        return cls(int(match[1]), depth if len(depth) > 1 else depth[0], int(match[3]) if match[3] else None)


def kept_blocks(depth: int, max_depth: int) -> tuple[int, ...]:
    """Indices of the blocks that a subnet of ``depth`` keeps of ``max_depth``, evenly spread.

    ``floor((max_depth - 1) * j / (depth - 1))`` for ``j = 0 .. depth - 1`` (POA, Sec. 3.2), so the
    first and the last block always stay; a single block is the first. Every stage is cut by itself.

    Raises:
        ValueError: If ``depth`` is not in ``1 .. max_depth``.
    """
    if not 1 <= depth <= max_depth:
        raise ValueError(f'depth {depth} is not in 1..{max_depth}')
    if depth == 1:
        return (0,)
    return tuple((max_depth - 1) * j // (depth - 1) for j in range(depth))
