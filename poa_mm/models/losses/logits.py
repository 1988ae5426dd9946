"""How logits are computed, and how they lie in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional

ROWS = 8  # logits are computed for a multiple of it
PARTS = 64  # at most


@contextmanager
def float32_products(device: torch.device) -> Iterator[None]:
    """Matrix products of float32 whatever the autocast; where that is on, a GPU may round their factors to TF32.

    TF32 keeps 10 bits of a factor, as many as float16, and the range of float32, so that nothing overflows and no
    small gradient is lost; products are summed in float32. In true float32, the products with all prototypes would take
    a fifth of a step. Without autocast, they are what torch is set to.
    """
    fast = device.type == 'cuda' and torch.is_autocast_enabled()
    before = torch.get_float32_matmul_precision()
    if fast:
        torch.set_float32_matmul_precision('high')
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        if fast:
            torch.set_float32_matmul_precision(before)


def prototype_logits(embeddings: Tensor, prototypes: Tensor) -> Tensor:
    """``embeddings @ prototypes.T``, ``(N, C)`` and ``(K, C)`` to ``(N, K)``, in memory as ``(K, N)``, in float32.

    With ``N`` rounded up to a multiple of 8 there, this product takes two thirds of the time on the CPU that it takes
    for the usual layout, and so does the loss' gradient. Whatever works on logits element by element keeps the layout.
    """
    with float32_products(embeddings.device):
        return (prototypes.float() @ padded(embeddings.float()).T).T[: len(embeddings)]


def padded(rows: Tensor) -> Tensor:
    """``(N, C)`` with rows of zeros up to a multiple of 8."""
    return functional.pad(rows, (0, 0, 0, -len(rows) % ROWS))


def in_parts(matrix: Tensor) -> Tensor:
    """``(K, N)`` as ``(P, K / P, N)``, with as many parts as divide 64 and ``K``.

    Summed over the second dimension and then over the first, it is summed by the CPU's threads as they change it
    element by element, some parts each. Of the whole matrix, each would sum some columns, which are in others' caches.
    """
    return matrix.unflatten(0, (math.gcd(len(matrix), PARTS), -1))
