"""What a student makes of crops, and what it loses against its targets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..backbones.elastic_backbone import Features
from ..losses import Targets, prototype_loss


class StudentOutput(NamedTuple):
    """What one student makes of the global or of the local crops of a batch.

    Args:
        features: Class features, ``(2B, width)`` or ``(L * B, width)``.
        embeddings: Of each head, of the class features, then of the masked patches, ``(2B + M, C)`` or ``(L * B, C)``.
        mapped: Class and patch features of global crops in the space of another network that teaches, if they are to
            match. Default: None.
    """

    features: Tensor
    embeddings: list[Tensor]
    mapped: Features | None = None


class StudentLoss(NamedTuple):
    """What one student loses on all heads.

    Args:
        total: Weighted sum of all terms, a scalar, the only one with a gradient.
        terms: Unweighted, ``(heads,)`` each.
        probs: Head by head, the student's distribution over the prototypes for each of the leading rows, ``(keep, K)``.
    """

    total: Tensor
    terms: dict[str, Tensor]
    probs: list[Tensor]


def student_loss(
    student: StudentOutput,
    prototypes: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    objectives: Iterable[dict[str, Targets]],
    temperature: float,
    keep: int,
) -> StudentLoss:
    """Loss of one student on the prototypes of all heads.

    Args:
        student: Its output.
        prototypes: Of each head, ``(K, C)``.
        grads: To which the gradient of the prototypes of each head is added, ``(K, C)``; None where none is wanted.
        objectives: Head by head, the student's targets by term.
        temperature: Of the student.
        keep: Of how many leading rows the student's distributions are wanted.
    """
    total, terms, probs = 0.0, {}, []
    for embeddings, matrix, grad, targets in zip(student.embeddings, prototypes, grads, objectives):
        loss, rows, kept = prototype_loss(
            embeddings, matrix, list(targets.values()), temperature, prototypes_grad=grad, keep=keep
        )
        total = total + loss
        probs.append(kept)
        for name, values in zip(targets, rows):
            terms.setdefault(name, []).append(values.sum())
    return StudentLoss(total, {name: torch.stack(values) for name, values in terms.items()}, probs)
