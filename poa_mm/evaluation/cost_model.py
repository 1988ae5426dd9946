"""From the measured cost of some subnets to that of all: a fit for each width and patch size, additive over blocks.

A network of one width and patch size is a stem and some blocks, and all blocks of a stage are alike. So its latency is
``constant + sum over stages of blocks * latency of a block``, with numbers of its own for each width and patch size.
They are fitted by least squares of the relative error. The same holds for the peak memory, of which the weights are
what grows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product
from statistics import median
from typing import NamedTuple

import numpy as np
from scipy.stats import kendalltau

from poa_mm.elastic import Subnet, SubnetSpace

LEVELS = 5  # depths of each stage that are timed at first, for each width and patch size
HELD_OUT = 5  # one in so many is kept out of the fit
NEARLY_ALL = 0.75  # of a space: then the rest is timed as well


class Spread(NamedTuple):
    """Subnets to measure.

    Args:
        fitted: Those that the fit sees.
        held_out: Those that show how good it is. None if every subnet is measured.
    """

    fitted: list[Subnet]
    held_out: list[Subnet]

    @property
    def all(self) -> list[Subnet]:
        """Both, by size."""
        return sorted([*self.fitted, *self.held_out])


class HeldOut(NamedTuple):
    """How well a fit predicts what it has not seen.

    Args:
        count: Subnets that were held out.
        median_error: Median of ``|predicted - measured| / measured``.
        max_error: The largest of these.
        kendall_tau: Agreement of the two orders, 1 if they are the same; None for fewer than two subnets.
    """

    count: int
    median_error: float
    max_error: float
    kendall_tau: float | None


def spread(space: SubnetSpace, levels: int = LEVELS) -> Spread:
    """Subnets that cover a space evenly: every width and patch size, and at each of them some depths.

    Of a depth by stage, ``levels`` depths of each stage, in every combination. A fifth of them is held out, none of it
    at a corner, so that no prediction reaches beyond what was fitted.

    Args:
        space: All subnets.
        levels: Depths of each stage, evenly spread, the smallest and the largest among them. Default: 5. Those of
            ``2 * levels - 1`` are a superset.

    Returns:
        The whole space, and nothing held out, where the spread is nearly all of it.
    """
    stages = [sorted(set(stage)) for stage in zip(*map(_blocks, space.depths))]
    points = list(product(*(_evenly(stage, levels) for stage in stages)))
    if len(points) >= NEARLY_ALL * len(space.depths):
        return Spread(list(space), [])
    inner = [point for point in points if not all(n in (s[0], s[-1]) for n, s in zip(point, stages))]
    number = max(1, round(len(points) / HELD_OUT))
    result = Spread([], [])
    for index, (width, patch) in enumerate(product(space.widths, space.patches)):
        held_out = {inner[(index + i * len(inner) // number) % len(inner)] for i in range(number)}
        for point in points:
            subnet = Subnet(width, point if space.stages else point[0], patch)
            (result.held_out if point in held_out else result.fitted).append(subnet)
    return result


class AdditiveFit:
    """A cost as a function of the subnet, fitted to measured ones.

    Args:
        measured: Positive costs, of enough depths at each width and patch size for one number for each stage that
            varies, and one.

    Raises:
        ValueError: If there is none, or one is not positive.
    """

    def __init__(self, measured: Mapping[Subnet, float]):
        if not measured or not all(cost > 0 for cost in measured.values()):
            raise ValueError(f'costs to fit must be positive, at least one; got {list(measured.values())[:5]}')
        self._coefficients: dict[tuple[int, int | None], np.ndarray] = {}
        for kind in {_kind(subnet) for subnet in measured}:
            costs = {subnet: cost for subnet, cost in measured.items() if _kind(subnet) == kind}
            rows = np.array([[1, *_blocks(subnet.depth)] for subnet in costs], dtype=float)
            values = np.array(list(costs.values()))
            # Divided by the cost, so that the relative error is what is small. A stage that does not vary shares the
            # constant's column; lstsq takes the smallest coefficients then, and the predictions are the same.
            self._coefficients[kind] = np.linalg.lstsq(rows / values[:, None], np.ones(len(values)), rcond=None)[0]

    def predict(self, subnet: Subnet) -> float:
        """The cost of a subnet of a width and patch size that were fitted.

        Raises:
            ValueError: If they were not.
        """
        if _kind(subnet) not in self._coefficients:
            known = ', '.join(_described(size) for size in sorted(Subnet(w, 0, p) for w, p in self._coefficients))
            raise ValueError(f'width {_described(subnet)} was not measured; measured are [{known}]')
        return float(self._coefficients[_kind(subnet)] @ [1, *_blocks(subnet.depth)])


def held_out_error(measured: Mapping[Subnet, float], held_out: Iterable[Subnet]) -> HeldOut:
    """Fit all of ``measured`` but ``held_out``, and compare the predictions for these.

    Raises:
        ValueError: If nothing is held out.
    """
    held_out = list(held_out)
    if not held_out:
        raise ValueError('no subnet is held out')
    fit = AdditiveFit({subnet: cost for subnet, cost in measured.items() if subnet not in held_out})
    predicted = [fit.predict(subnet) for subnet in held_out]
    found = [measured[subnet] for subnet in held_out]
    errors = [abs(p - m) / m for p, m in zip(predicted, found)]
    tau = float(kendalltau(predicted, found).statistic) if len(held_out) > 1 else None
    return HeldOut(len(held_out), median(errors), max(errors), tau)


def _kind(subnet: Subnet) -> tuple[int, int | None]:
    """What all blocks of a network are alike in."""
    return subnet.width, subnet.patch


def _described(subnet: Subnet) -> str:
    return f'{subnet.width}' if subnet.patch is None else f'{subnet.width} with patch size {subnet.patch}'


def _blocks(depth: int | tuple[int, ...]) -> tuple[int, ...]:
    """Blocks of each stage."""
    return (depth,) if isinstance(depth, int) else depth


def _evenly(sizes: list[int], number: int) -> list[int]:
    """At most ``number`` of the sizes, evenly spread from the first to the last."""
    if len(sizes) <= number:
        return sizes
    return [sizes[i * (len(sizes) - 1) // (number - 1)] for i in range(number)]
