"""How logits lie in memory."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional

ROWS = 8  # logits are computed for a multiple of it
PARTS = 64  # at most


def prototype_logits(embeddings: Tensor, prototypes: Tensor) -> Tensor:
    """``embeddings @ prototypes.T``, ``(N, C)`` and ``(K, C)`` to ``(N, K)``, in memory as ``(K, N)``.

    With ``N`` rounded up to a multiple of 8 there, this product takes two thirds of the time on the CPU that it takes
    for the usual layout, and so does the loss' gradient. Whatever works on logits element by element keeps the layout.
    """
    return (prototypes @ padded(embeddings).T).T[: len(embeddings)]


def padded(rows: Tensor) -> Tensor:
    """``(N, C)`` with rows of zeros up to a multiple of 8."""
    return functional.pad(rows, (0, 0, 0, -len(rows) % ROWS))


def in_parts(matrix: Tensor) -> Tensor:
    """``(K, N)`` as ``(P, K / P, N)``, with as many parts as divide 64 and ``K``.

    Summed over the second dimension and then over the first, it is summed by the CPU's threads as they change it
    element by element, some parts each. Of the whole matrix, each would sum some columns, which are in others' caches.
    """
    return matrix.unflatten(0, (math.gcd(len(matrix), PARTS), -1))
