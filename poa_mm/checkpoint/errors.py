"""What goes wrong with checkpoints, and how messages name what is in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from poa_mm.mistakes import UserError


class CheckpointError(UserError, ValueError):
    """A file is not the checkpoint that it should be; says what was found and what was expected."""


class CheckpointWriteError(OSError):
    """A checkpoint could not be written, for instance because the disk is full. Those before it are as they were."""


def check_state(expected: Mapping[str, Tensor], found: Mapping[str, Any], what: str) -> None:
    """Check that two state dicts have the same names and shapes.

    Raises:
        CheckpointError: If they have not; lists the differences after ``what``.
    """
    wrong = []
    if missing := expected.keys() - found.keys():
        wrong.append(f'missing {shorten(missing)}')
    if unexpected := found.keys() - expected.keys():
        wrong.append(f'unexpected {shorten(unexpected)}')
    for key in sorted(expected.keys() & found.keys()):
        shape = tuple(found[key].shape) if isinstance(found[key], Tensor) else type(found[key]).__name__
        if shape != tuple(expected[key].shape):
            wrong.append(f'{key} is {shape}, expected {tuple(expected[key].shape)}')
    if wrong:
        more = f'; and {len(wrong) - 8} more' if len(wrong) > 8 else ''
        raise CheckpointError(f'{what} does not fit the network: {"; ".join(wrong[:8])}{more}')


def check_finite(weights: Mapping[str, Any], what: str) -> None:
    """Check that weights are numbers.

    Args:
        weights: By name; what is no tensor, or has no content, is left out.
        what: What errors call them.

    Raises:
        CheckpointError: If some are NaN or infinite; names them.
    """
    wrong = [name for name, value in weights.items() if isinstance(value, Tensor) and not _is_finite(value)]
    if wrong:
        raise CheckpointError(f'{what}: there is NaN or infinity in {shorten(wrong)}')


def _is_finite(value: Tensor) -> bool:
    if value.is_meta or not (value.is_floating_point() or value.is_complex()):
        return True
    value = value.float() if value.element_size() == 1 else value  # torch cannot ask that of 8 bits
    return bool(torch.isfinite(value).all())


def shorten(names: Iterable[Any], limit: int = 6) -> str:
    """The first names in alphabetical order, and how many more there are."""
    names = sorted(map(str, names))
    text = ', '.join(names[:limit]) or 'nothing'
    return text if len(names) <= limit else f'{text} and {len(names) - limit} more'
