"""What the students learn in one step, pass by pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from poa_mm.elastic import Subnet

from ..backbones.elastic_backbone import Features
from ..losses import Targets, feature_loss, prototype_loss
from .batch import MicroBatches, MultiCropBatch
from .early_backward import EarlyBackward, hand_over
from .objectives import cross_view, same_view
from .repeated_draws import RepeatedDraws
from .students import student_loss
from .targets import PiecewiseTargets, TeacherTargets

POA = Any  # which imports this module


class StudentStep:
    """One step of the students of a :class:`POA`.

    Every piece of the batch goes through: the global crops of the intact student, its local crops, and the same of the
    elastic student, each with a backward pass of its own before the next starts (:class:`EarlyBackward`).

    Args:
        model: Whose students they are.
        batch: In one piece or several.
        targets: Of the teacher.
        subnet: That the elastic student computes.
    """

    def __init__(
        self,
        model: POA,
        batch: MultiCropBatch | MicroBatches,
        targets: TeacherTargets | PiecewiseTargets,
        subnet: Subnet | None,
    ):
        self._model, self._batch, self._targets = model, batch, targets
        self._subnets = {'intact': None, 'elastic': subnet}
        self._students = ['intact'] * (model.weight_is > 0) + ['elastic'] * model.runs_elastic
        self._prototypes = model.head.matrices()  # both students have the same
        # What all passes teach the prototypes is added up beside autograd: they are most of the head's weights.
        self._prototypes_grads = [
            torch.zeros_like(value, dtype=torch.float32) if value.requires_grad else None for value in self._prototypes
        ]
        self._draws = RepeatedDraws(self._prototypes[0].device)
        self._whole_koleo: dict[str, tuple[Tensor, Sequence[Tensor]]] = {}  # by student, of a batch in pieces

    def run(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to be minimised and, without gradient, every term of it; see :meth:`POA.loss_terms`."""
        early = EarlyBackward(self._trained(), self._model.loss_scale)
        left, terms = self._batch.num_pieces * len(self._passes()), {}
        for index, piece in enumerate(self._batch.pieces()):
            for loss, more in self._losses(index, piece, self._targets.of(index)):
                terms |= {name: terms.get(name, 0) + term for name, term in more.items()}
                left -= 1
                if left:  # the last one is for the backward pass of the whole step
                    early.add(loss)
        total = early.total() + loss
        return total + hand_over(torch.zeros_like(total), self._prototypes, self._prototypes_grads), terms

    def _passes(self) -> list[tuple[str, str]]:
        """Student and size of crops."""
        return [(student, size) for student in self._students for size in self._batch.sizes]

    def _trained(self) -> list[Tensor]:
        """What the students learn, but for the prototypes."""
        prototypes = set(self._model.head.prototypes.parameters())
        feature_map = self._model.feature_map
        modules = [*self._model.student.values(), *([] if feature_map is None else [feature_map])]
        params = (param for module in modules for param in module.parameters())
        return [param for param in params if param not in prototypes]

    def _losses(
        self, index: int, piece: MultiCropBatch, targets: TeacherTargets
    ) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Loss and terms of each pass of piece number ``index``."""
        model = self._model
        seen = self._seen_by_intact(piece)
        crops_of = {student: self._crops_of(student, piece) for student in self._students}
        for student, size in self._passes():
            self._draws.begin(f'{student} {size}')
            crops = crops_of[student]
            output = model.student_output(crops, self._subnets[student], size)
            objectives = (
                self._objectives(student, size, crops, targets, seen, head) for head in range(len(self._prototypes))
            )
            teaches = student == 'intact' and model.weight_es2 > 0
            loss, terms, probs = student_loss(
                output,
                self._prototypes,
                self._prototypes_grads,
                objectives,
                model.student_temp,
                keep=piece.num_rows[size] * teaches,
            )
            if size == 'global' and model.koleo_weight > 0:
                koleo = self._koleo(student, index, output.features)
                loss = loss + model.koleo_weight * koleo
                terms['koleo'] = koleo.detach()
            if output.mapped is not None:
                loss = loss + self._match_features(student, output.mapped, targets, piece, terms)
            if teaches:
                seen[size] = probs
            yield loss, terms

    def _crops_of(self, student: str, piece: MultiCropBatch) -> MultiCropBatch:
        """The piece with masks on the grid of the student's patches."""
        return self._model.on_grid_of(piece, self._subnets[student])

    @torch.no_grad()
    def _seen_by_intact(self, piece: MultiCropBatch) -> dict[str, list[Tensor]]:
        """What an intact student that teaches, but does not learn, makes of the class tokens; of others empty.

        Returns:
            By size of crops its distributions on each head, ``(num_rows, K)``.
        """
        model = self._model
        if model.weight_is > 0 or model.weight_es2 == 0:
            return {}
        seen: dict[str, list[Tensor]] = {}
        for size in piece.sizes:
            self._draws.begin(f'intact {size}')
            output, keep = model.student_output(piece, None, size), piece.num_rows[size]
            for embeddings, matrix in zip(output.embeddings, self._prototypes):
                *_, probs = prototype_loss(embeddings[:keep], matrix.detach(), [], model.student_temp, keep=keep)
                seen.setdefault(size, []).append(probs)
        # Autocast has kept casts of the weights that carry no gradient; the elastic student needs its own.
        torch.clear_autocast_cache()
        return seen

    # --- objectives ---

    def _objectives(
        self,
        student: str,
        size: str,
        piece: MultiCropBatch,
        targets: TeacherTargets,
        seen: dict[str, list[Tensor]],
        head: int,
    ) -> dict[str, Targets]:
        """What one student learns from crops of one size on one head, by term."""
        model, heads = self._model, len(self._prototypes)
        name, weight = self._across_views(student)
        objectives = {}
        if weight > 0:
            objectives |= cross_view(name, weight / heads, model.patch_weight, size, piece, targets, head)
        if student == 'elastic' and model.weight_es2 > 0:
            objectives[f'L_ES2_{size}'] = same_view(seen[size][head], model.weight_es2 / heads, size, piece)
        return objectives

    def _match_features(
        self,
        student: str,
        mapped: Features,
        targets: TeacherTargets,
        piece: MultiCropBatch,
        terms: dict[str, Tensor],
    ) -> Tensor | float:
        """Weighted distance of a student's features from those of another network that teaches, for the loss.

        Class tokens and patches count half each. The distance itself is added to ``terms``.
        """
        name, weight = self._across_views(student)
        if weight == 0:
            return 0.0
        value = sum(feature_loss(*tokens) for tokens in zip(mapped, targets.features)) / 2
        value = value * (piece.num_images / piece.whole)
        terms[f'{name}_feature'] = value.detach()
        return weight * self._model.feature_weight * value

    def _across_views(self, student: str) -> tuple[str, float]:
        """Name and weight of what a student learns from the teacher."""
        return ('L_IS', self._model.weight_is) if student == 'intact' else ('L_ES1', self._model.weight_es1)

    def _koleo(self, student: str, index: int, features: Tensor) -> Tensor:
        """KoLeo of one student on the global crops of piece number ``index``: its share in that of the whole batch."""
        if self._batch.num_pieces == 1:
            return self._koleo_of([features])
        if student not in self._whole_koleo:
            self._whole_koleo[student] = self._koleo_ahead(student, features)
        value, grads = self._whole_koleo[student]
        return hand_over(value / self._batch.num_pieces, [features], [grads[index]])

    def _koleo_of(self, features: Sequence[Tensor]) -> Tensor:
        """Of a student's class features of the global crops, by piece: the sum of both, over the number of students."""
        crops = zip(*(piece.chunk(2) for piece in features))
        return sum(self._model.koleo(torch.cat(crop)) for crop in crops) / len(self._students)

    def _koleo_ahead(self, student: str, first: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """KoLeo of one student on the whole batch, and its gradient with respect to the features of each piece.

        Neighbours are sought in the whole batch, so its features are needed before any backward pass: all pieces but
        the ``first``, whose features are there, go through the backbone once more, without gradient.
        """
        features = [first.detach()]
        with torch.no_grad():
            for piece in self._batch.pieces(1):
                self._draws.begin(f'{student} global')
                crops = self._crops_of(student, piece)
                features.append(self._model.student_features(crops, self._subnets[student], 'global').cls)
        torch.clear_autocast_cache()  # of casts without gradient
        leaves = [piece.float().requires_grad_() for piece in features]
        value = self._koleo_of(leaves)
        return value.detach(), torch.autograd.grad(value, leaves)
