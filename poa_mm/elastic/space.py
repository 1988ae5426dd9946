"""All subnets of one supernet: enumerate, count, name, weigh."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from .subnet import Subnet


class SubnetSpace:
    """The product of some widths and some depths and, where there is a choice, some patch sizes.

    Iterating yields every :class:`Subnet`, by width, depth and patch size, the native one last. So the last of all is
    the largest: the whole network.

    Args:
        widths: Valid widths, in any order.
        depths: Valid depths, in any order. For a network whose stages are cut each by itself, the valid
            depths of each stage, such as ``([3], range(4, 9), range(6, 37), [3])``; every combination is valid.
        aliases: Names of subnets, such as ``{'small': '384x12'}``. Default: none.
        patches: Valid patch sizes in pixels, in any order, ``native`` among them. Default: none, there is no choice.
        native: Patch size that a :class:`Subnet` without one has: ``384x12p16`` is then another name of ``384x12``.
            Default: None, unknown.

    Raises:
        ValueError: If sizes are empty, repeated or below one, an alias lies outside, or ``native`` is none of
            ``patches``.
    """

    def __init__(
        self,
        widths: Iterable[int],
        depths: Iterable[int] | Iterable[Iterable[int]],
        aliases: Mapping[str, Subnet | str] | None = None,
        patches: Iterable[int] | None = None,
        native: int | None = None,
    ):
        self.widths = _checked_sizes('widths', widths)
        sizes: list[Any] = list(depths)
        self.stages: tuple[tuple[int, ...], ...] | None = None
        if len(sizes) > 1 and any(isinstance(stage, (list, tuple, range)) for stage in sizes):
            self.stages = tuple(_checked_sizes(f'depths[{i}]', stage) for i, stage in enumerate(sizes))
        self.depths: tuple[Any, ...] = tuple(product(*self.stages)) if self.stages else _checked_sizes('depths', sizes)
        self.native = native
        self.patch_sizes: tuple[int, ...] = () if patches is None else _checked_sizes('patch sizes', patches)
        if self.patch_sizes and native not in self.patch_sizes:
            raise ValueError(f'patch sizes {list(self.patch_sizes)} must hold the native one, {native}')
        self.patches: tuple[int | None, ...] = (*(size for size in self.patch_sizes if size != native), None)
        self.aliases: dict[str, Subnet] = {}
        for name, subnet in (aliases or {}).items():
            self.aliases[name] = self.parse(subnet)

    @classmethod
    def of(cls, subnet: Subnet) -> SubnetSpace:
        """The space of one subnet, whose patch size, if it names one, goes without a native one."""
        depths = [subnet.depth] if isinstance(subnet.depth, int) else [[stage] for stage in subnet.depth]
        space = cls([subnet.width], depths)
        space.patches = (subnet.patch,)
        space.patch_sizes = () if subnet.patch is None else (subnet.patch,)
        return space

    def __iter__(self) -> Iterator[Subnet]:
        return (Subnet(*sizes) for sizes in product(self.widths, self.depths, self.patches))

    def __len__(self) -> int:
        return len(self.widths) * len(self.depths) * len(self.patches)

    def __contains__(self, subnet: object) -> bool:
        """Whether ``subnet`` is one of those that iterating yields, which never name the native patch size."""
        return (
            isinstance(subnet, Subnet)
            and subnet.width in self.widths
            and subnet.depth in self.depths
            and subnet.patch in self.patches
        )

    def __repr__(self) -> str:
        return f'SubnetSpace({self.describe()})'

    @property
    def smallest(self) -> Subnet:
        """The fewest channels and blocks, of the native patch size."""
        return Subnet(self.widths[0], self.depths[0], self.patches[-1])

    @property
    def largest(self) -> Subnet:
        """The whole network."""
        return Subnet(self.widths[-1], self.depths[-1], self.patches[-1])

    def describe(self) -> str:
        """Widths, depths, patch sizes and aliases in one line, for messages."""
        depths = '-'.join(map(_shortened, self.stages)) if self.stages else ', '.join(map(str, self.depths))
        text = f'widths {", ".join(map(str, self.widths))}; depths {depths}'
        if self.patch_sizes:
            text += f'; patch sizes {", ".join(map(str, self.patch_sizes))}'
            text += '' if self.native is None else f' ({self.native} is native)'
        if self.aliases:
            text += '; aliases ' + ', '.join(f'{name}={subnet}' for name, subnet in self.aliases.items())
        return text

    def parse(self, subnet: Subnet | str) -> Subnet:
        """The subnet that ``subnet`` names: ``"384x12"``, an alias, or a :class:`Subnet` itself.

        The result never names the native patch size: of each subnet there is one :class:`Subnet` only.

        Raises:
            ValueError: If it is malformed or lies outside this space; the message names the valid ones.
        """
        found = self.aliases.get(subnet) if isinstance(subnet, str) else subnet
        if found is None:
            try:
                found = Subnet.parse(str(subnet))
            except ValueError as error:
                raise ValueError(f'{error}; valid here: {self.describe()}') from None
        if isinstance(found, Subnet) and found.patch is not None and found.patch == self.native:
            found = replace(found, patch=None)
        if found not in self:
            raise ValueError(f'subnet {found} is not in the space; valid here: {self.describe()}')
        return found

    def multiplicity(self, subnet: Subnet, select_scale: float | Sequence[float] = 3.0) -> int:
        """Copies of ``subnet`` in the deck: ``round(sw * sd)``.

        ``sw`` falls linearly from ``select_scale`` at the smallest width to 1 at the largest, ``sd``
        likewise over the depths (``net_select_scale`` in the authors' code): small subnets share few
        weights with the rest and need to be drawn more often. Of a depth by stage, the sum counts. All patch sizes
        use the same weights, and are drawn alike.

        Args:
            subnet: The subnet.
            select_scale: Weight of the smallest size against the largest, or a pair of it for widths and
                depths. Default: 3.
        """
        subnet = self.parse(subnet)
        width_scale, depth_scale = select_scale if isinstance(select_scale, Sequence) else (select_scale,) * 2
        blocks = sorted(set(map(_num_blocks, self.depths)))
        by_width = _falling(self.widths.index(subnet.width), len(self.widths), width_scale)
        by_depth = _falling(blocks.index(_num_blocks(subnet.depth)), len(blocks), depth_scale)
        return round(by_width * by_depth)


def _num_blocks(depth: int | tuple[int, ...]) -> int:
    return depth if isinstance(depth, int) else sum(depth)


def _falling(index: int, count: int, start: float) -> float:
    """Value at ``index`` of ``count`` evenly spaced values from ``start`` down to 1."""
    return start + (1 - start) * index / (count - 1) if count > 1 else 1.0


def _shortened(sizes: tuple[int, ...]) -> str:
    """``3``, ``(6..36)`` or ``(6, 12, 36)``."""
    if len(sizes) == 1:
        return str(sizes[0])
    if len(sizes) == sizes[-1] - sizes[0] + 1:
        return f'({sizes[0]}..{sizes[-1]})'
    return f'({", ".join(map(str, sizes))})'


def _checked_sizes(name: str, sizes: int | Iterable[int]) -> tuple[int, ...]:
    values = [sizes] if isinstance(sizes, int) else list(sizes)
    if not values or any(not isinstance(v, int) or v < 1 for v in values) or len(set(values)) < len(values):
        raise ValueError(f'{name} must be distinct positive integers, at least one; got {values}')
    return tuple(sorted(values))
