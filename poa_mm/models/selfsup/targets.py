"""What the teacher gives the students to learn."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..backbones.elastic_backbone import Features


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

    def health(self) -> dict[str, Tensor]:
        """What tells a collapse, of the class targets of a head with K prototypes.

        Returns:
            ``teacher_entropy_{K}``, their mean entropy in nats, and ``prototypes_in_use_{K}``, how many prototypes are
            the most likely one of some crop: 1 to ``2B``.
        """
        health = {}
        for cls in self.cls:
            number = cls.shape[1]
            health[f'teacher_entropy_{number}'] = torch.special.entr(cls).sum(dim=1).mean()
            used = cls.new_zeros(number).index_fill_(0, cls.argmax(dim=1), 1)  # unique() would wait for the device
            health[f'prototypes_in_use_{number}'] = used.sum()
        return health
