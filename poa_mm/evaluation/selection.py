"""Choosing a subnet from a scorecard: all of them are looked at, so that the answer is the best one."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

# By the name of the limit: its unit, how many plain units of the scorecard are one of it, and how it is called.
LIMITS = {
    'latency': ('ms', 1, 'latency'),
    'params': ('M', 1e6, 'parameters'),
    'size': ('MB', 1e6, 'file size'),
    'memory': ('MB', 1e6, 'peak memory'),
}
_BYTES = {'B': 1, 'KB': 1e3, 'MB': 1e6, 'GB': 1e9, 'KIB': 2**10, 'MIB': 2**20, 'GIB': 2**30}
SUFFIXES = {
    'latency': {'': 1, 'MS': 1, 'S': 1000, 'US': 1e-3},
    'params': {'': 1, 'K': 1e3, 'M': 1e6, 'B': 1e9, 'G': 1e9},
    'size': _BYTES,
    'memory': _BYTES,
}

Row = Mapping[str, Any]


class Excess(NamedTuple):
    """How far a subnet is over one limit.

    Args:
        limit: One of ``LIMITS``.
        value: What the subnet has; None if it is not known.
        allowed: The limit.
    """

    limit: str
    value: float | None
    allowed: float

    def __str__(self) -> str:
        _, _, name = LIMITS[self.limit]
        if self.value is None:
            return f'{name} is not known'
        over = self.value - self.allowed
        return (
            f'{name} {in_unit(self.limit, self.value)}, {in_unit(self.limit, over)} '
            f'({100 * over / self.allowed:.1f} %) too much'
        )


class Choice(NamedTuple):
    """What a scorecard says to some limits.

    Args:
        ranked: Subnets within all limits, the best first; empty if nothing fits.
        largest: The largest subnet, to compare with.
        misses: Of those that do not fit, what each is over, the nearest first.
    """

    ranked: list[Row]
    largest: Row
    misses: list[tuple[Row, list[Excess]]]


def parse_limit(limit: str, text: str) -> float:
    """A limit in plain units (milliseconds, parameters, bytes) from text such as ``'20'``, ``'30M'`` or ``'60MB'``.

    Raises:
        ValueError: If the text is something else, or not positive.
    """
    match = re.fullmatch(r'\s*((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([A-Za-z]*)\s*', text)
    factor = SUFFIXES[limit].get(match[2].upper()) if match else None
    if match is None or factor is None or not 0 < (value := float(match[1]) * factor) < math.inf:
        units = ', '.join(filter(None, SUFFIXES[limit]))
        raise ValueError(f'{LIMITS[limit][2]} {text!r} is not a positive number with one of the units {units}')
    return value


def in_unit(limit: str, value: float) -> str:
    """A value in plain units for people, such as ``'30 M'``."""
    unit, scale, _ = LIMITS[limit]
    value /= scale
    return f'{value:.0f} {unit}' if abs(value) >= 1000 else f'{value:.3g} {unit}'


def value_of(row: Row, limit: str, condition: str) -> float | None:
    """What a subnet has of what is limited, in plain units; None if it is not known."""
    cost = row['costs'][condition]
    return {
        'latency': cost['median_ms'],
        'params': row['params'],
        'size': row['file_bytes'],
        'memory': cost['peak_memory'],
    }[limit]


def choose(
    card: Mapping[str, Any], limits: Mapping[str, float], by: str | None = None, condition: str | None = None
) -> Choice:
    """The best subnets within some limits.

    Args:
        card: A scorecard.
        limits: In plain units, by the names of ``LIMITS``; may be empty.
        by: Score that counts. Default: the scorecard's first.
        condition: Where latency and memory are taken from, such as ``'torch-cpu-b1'``. Default: the first.

    Returns:
        All subnets, by score; of equal ones the faster is better, then the one with fewer parameters.

    Raises:
        ValueError: If the scorecard has no such score or condition, or a limit is unknown.
    """
    by, condition = check_choice(card, by, condition)
    if unknown := limits.keys() - LIMITS:
        raise ValueError(f'limit {min(unknown)!r} is not one of {", ".join(LIMITS)}')
    for name, limit in limits.items():
        if not isinstance(limit, (int, float)) or not (math.isfinite(limit) and limit > 0):
            raise ValueError(f'limit {name} {limit!r} is not a positive number')

    def rank(row: Row) -> tuple[float, float, int]:
        return -row['scores'][by], row['costs'][condition]['median_ms'], row['params']

    over = {row['subnet']: _excesses(row, limits, condition) for row in card['subnets']}
    ranked = sorted((row for row in card['subnets'] if not over[row['subnet']]), key=rank)
    misses = [(row, over[row['subnet']]) for row in card['subnets'] if over[row['subnet']]]
    misses.sort(key=lambda miss: (max(_ratio(excess) for excess in miss[1]), rank(miss[0])))
    return Choice(ranked, card['subnets'][-1], misses)


def check_choice(card: Mapping[str, Any], by: str | None, condition: str | None) -> tuple[str, str]:
    """The score and the condition to choose by, the scorecard's first by default.

    Raises:
        ValueError: If the scorecard has none of that name.
    """
    for name, wanted, known in (('score', by, card['protocols']), ('condition', condition, card['conditions'])):
        if wanted is not None and wanted not in known:
            raise ValueError(f'{name} {wanted!r} is not in the scorecard; it has {", ".join(known)}')
    return by or card['protocols'][0], condition or card['conditions'][0]


def _excesses(row: Row, limits: Mapping[str, float], condition: str) -> list[Excess]:
    found = [Excess(limit, value_of(row, limit, condition), allowed) for limit, allowed in limits.items()]
    return [excess for excess in found if excess.value is None or excess.value > excess.allowed]


def _ratio(excess: Excess) -> float:
    return math.inf if excess.value is None else excess.value / excess.allowed


def describe_choice(choice: Choice, by: str, condition: str, runners_up: int = 5) -> list[str]:
    """What to say of a choice, a line for each thing; the subnet first."""
    if not choice.ranked:
        lines = ['nothing fits; the nearest:']
        for row, excesses in choice.misses[:3]:
            lines.append(f'  {row["subnet"]}: {"; ".join(map(str, excesses))}')
        return lines
    best, largest = choice.ranked[0], choice.largest
    lines = [f'{_named(best)}: {_summary(best, by, condition)}']
    if best['subnet'] != largest['subnet']:
        lines.append(f'against the largest, {largest["subnet"]}: {_against(best, largest, by, condition)}')
    for row in choice.ranked[1 : 1 + runners_up]:
        lines.append(f'runner-up {_named(row)}: {_summary(row, by, condition)}')
    return lines


def _named(row: Row) -> str:
    return f'{row["subnet"]} ({", ".join(row["aliases"])})' if row['aliases'] else row['subnet']


def _summary(row: Row, by: str, condition: str) -> str:
    values = [(name, value_of(row, limit, condition), limit) for limit, (*_, name) in LIMITS.items()]
    parts = [f'{name} {in_unit(limit, value)}' for name, value, limit in values if value is not None]
    return f'{by} {100 * row["scores"][by]:.2f} %, {", ".join(parts)} (latency {row["costs"][condition]["kind"]})'


def _against(row: Row, largest: Row, by: str, condition: str) -> str:
    points = 100 * (row['scores'][by] - largest['scores'][by])
    parts = [f'{points:+.2f} points of {by}']
    for limit, (*_, name) in LIMITS.items():
        mine, its = (value_of(each, limit, condition) for each in (row, largest))
        if mine is not None and its:
            parts.append(f'{100 * mine / its:.0f} % of its {name}')
    return ', '.join(parts)
