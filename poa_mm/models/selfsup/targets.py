"""What the teacher gives the students to learn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..backbones.elastic_backbone import Features
from ..losses import centred


class TeacherTargets(NamedTuple):
    """Centred targets, one tensor for each head.

    Args:
        cls: Of the class tokens of the global crops, ``(2B, K)``.
        patch: Of the masked patches of the global crops, ``(M, K)``.
        features: What they are of, ``(2B, D)`` and ``(2B, N, D)``, if students learn these as well. Default: None.
    """

    cls: list[Tensor]
    patch: list[Tensor]
    features: Features | None = None

    def of(self, index: int) -> TeacherTargets:
        """Of piece number ``index`` of the batch: all of them, for there is one piece."""
        return self

    def health(self) -> dict[str, Tensor]:
        """As :func:`health`."""
        return health([cls] for cls in self.cls)


class Centring(NamedTuple):
    """How embeddings of one head become targets, see :func:`~poa_mm.models.losses.centred`.

    Args:
        prototypes: Of the teacher, ``(K, C)``.
        cls: Shift for class tokens, ``(K,)``.
        patch: Shift for patches, ``(K,)``; None without patch loss.
    """

    prototypes: Tensor
    cls: Tensor
    patch: Tensor | None


class PiecewiseTargets(NamedTuple):
    """Targets of a batch in pieces, computed for one piece at a time.

    Those of all pieces would not fit: 1,600 images have some 94,000 masked patches, whose targets on 122,880
    prototypes are 46 GB. Their embeddings are 256 numbers a head.

    Args:
        cls: By piece and head, embeddings of the class tokens of the global crops, ``(2b, C)``.
        patch: By piece and head, those of the masked patches, ``(m, C)``.
        features: By piece, as of :class:`TeacherTargets`.
        centring: By head.
        temperature: Of the teacher.
    """

    cls: Sequence[Sequence[Tensor]]
    patch: Sequence[Sequence[Tensor]]
    features: Sequence[Features | None]
    centring: Sequence[Centring]
    temperature: float

    def of(self, index: int) -> TeacherTargets:
        """Of piece number ``index`` of the batch."""
        targets = TeacherTargets([], [], self.features[index])
        for cls, patch, centring in zip(self.cls[index], self.patch[index], self.centring):
            targets.cls.append(centred(cls, centring.prototypes, centring.cls, self.temperature))
            if centring.patch is not None:
                targets.patch.append(centred(patch, centring.prototypes, centring.patch, self.temperature))
        return targets

    def health(self) -> dict[str, Tensor]:
        """As :func:`health`."""
        return health(
            [centred(cls, centring.prototypes, centring.cls, self.temperature) for cls in pieces]
            for pieces, centring in zip(zip(*self.cls), self.centring)
        )


def health(targets: Iterable[Sequence[Tensor]]) -> dict[str, Tensor]:
    """What tells a collapse, of the class targets of a head with K prototypes.

    Args:
        targets: By head and piece of the batch, ``(2b, K)``.

    Returns:
        ``teacher_entropy_{K}``, their mean entropy in nats, and ``prototypes_in_use_{K}``, how many prototypes are
        the most likely one of some crop: 1 to ``2B``.
    """
    health = {}
    for head in targets:
        number = head[0].shape[1]
        entropy = torch.cat([torch.special.entr(cls).sum(dim=1) for cls in head])
        health[f'teacher_entropy_{number}'] = entropy.mean()
        used = entropy.new_zeros(number)  # unique() would wait for the device
        for cls in head:
            used.index_fill_(0, cls.argmax(dim=1), 1)
        health[f'prototypes_in_use_{number}'] = used.sum()
    return health
