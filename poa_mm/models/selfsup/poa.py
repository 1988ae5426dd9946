"""POA: pre-training once for models of all sizes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmengine.dist import get_rank
from mmengine.registry import MODELS
from mmpretrain.models.selfsup import BaseSelfSupervisor
from torch import Tensor, nn

from poa_mm.elastic import Subnet, SubnetDeck

from ..losses import CropLosses, class_loss, patch_loss, same_view_loss
from .batch import MultiCropBatch, check_views


class TeacherTargets(NamedTuple):
    """Centred targets, one tensor for each head.

    Args:
        cls: Of the class tokens of the global crops, ``(2B, K)``.
        patch: Of the masked patches of the global crops, ``(M, K)``.
    """

    cls: list[Tensor]
    patch: list[Tensor]


class StudentOutput(NamedTuple):
    """What one student makes of a batch.

    Args:
        features: Class features of the global crops, ``(2B, width)``.
        cls: Class logits of the global, then the local crops, ``((2 + L) * B, K)`` for each head.
        patch: Patch logits of the masked patches, ``(M, K)`` for each head.
    """

    features: Tensor
    cls: list[Tensor]
    patch: list[Tensor]


@MODELS.register_module()
class POA(BaseSelfSupervisor):
    """Pre-training Once for models of All sizes (ECCV 2024, https://arxiv.org/abs/2408.01031).

    Three branches: an EMA teacher, an intact student with all weights, and an elastic student, which is
    a subnet of the same weights dealt anew at each step. The loss is (Eq. 5)::

        weight_is * L_IS + weight_es1 * L_ES1 + weight_es2 * L_ES2 + koleo_weight * KoLeo

    L_IS and L_ES1 teach the intact and the elastic student what the teacher sees in *other* views of an
    image (class loss and masked patch loss), L_ES2 teaches the elastic student what the intact one sees
    in the *same* view; each is the mean over the heads. The paper's lambda of 0.8 is ``weight_is = 0.8``
    and ``weight_es1 = weight_es2 = 1 - 0.8``. A weight of 0 switches its loss off and saves what only
    that loss needs, so an ablation row of the paper is one line: ``weight_es2=0``, ``weight_es1=0`` or a
    head with one entry in ``num_prototypes``.

    What changes over a run is set from outside, by :class:`poa_mm.engine.POAScheduleHook`:
    ``teacher_temp`` and ``patch_loss_active``.

    Args:
        backbone: An elastic backbone, such as ``ElasticVisionTransformer``.
        head: A :class:`MultiPrototypeHead`; its ``in_channels`` default to the backbone's.
        weight_is: Weight of L_IS. Default: 0.8.
        weight_es1: Weight of L_ES1. Default: 0.2.
        weight_es2: Weight of L_ES2. Default: 0.2.
        patch_weight: Weight of the patch loss within L_IS and L_ES1. Default: 1.
        koleo_weight: Weight of KoLeo, the sum over the global crops, mean over the students. Default: 0.1.
        student_temp: Temperature of the students. Default: 0.1.
        teacher_temp: Temperature of the teacher until a hook sets it. Default: 0.07.
        centering: How teacher logits become targets: ``SinkhornKnopp`` or ``MeanCentering``.
            Default: ``dict(type='SinkhornKnopp')``.
        deck: ``sync`` and ``select_scale`` of the :class:`~poa_mm.elastic.SubnetDeck`. Default: neither.
        data_preprocessor: Default: mmpretrain's ``SelfSupDataPreprocessor``.
        init_cfg: mmengine's initialisation config. Default: None.

    Raises:
        ValueError: If a weight is negative, no student has anything to learn or ``deck`` sets anything else.
    """

    def __init__(
        self,
        backbone: dict,
        head: dict,
        weight_is: float = 0.8,
        weight_es1: float = 0.2,
        weight_es2: float = 0.2,
        patch_weight: float = 1.0,
        koleo_weight: float = 0.1,
        student_temp: float = 0.1,
        teacher_temp: float = 0.07,
        centering: dict | None = None,
        deck: dict | None = None,
        data_preprocessor: dict | nn.Module | None = None,
        init_cfg: dict | None = None,
    ):
        backbone = MODELS.build(backbone) if isinstance(backbone, dict) else backbone
        if isinstance(head, dict):
            head = MODELS.build({'in_channels': backbone.feature_channels, **head})
        super().__init__(backbone=backbone, head=head, data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        weights = dict(
            weight_is=weight_is,
            weight_es1=weight_es1,
            weight_es2=weight_es2,
            patch_weight=patch_weight,
            koleo_weight=koleo_weight,
        )
        if min(weights.values()) < 0 or weight_is + weight_es1 + weight_es2 == 0:
            raise ValueError(f'weights must not be negative and one of the three losses must be on; got {weights}')
        self.weight_is = weight_is
        self.weight_es1 = weight_es1
        self.weight_es2 = weight_es2
        self.patch_weight = patch_weight
        self.koleo_weight = koleo_weight
        self.student_temp = student_temp
        self.teacher_temp = teacher_temp
        self.patch_loss_active = True

        self.teacher = nn.ModuleDict(dict(backbone=copy.deepcopy(self.backbone), head=copy.deepcopy(self.head)))
        self.teacher.requires_grad_(False)
        centering = centering or dict(type='SinkhornKnopp')
        self.class_centering, self.patch_centering = (
            nn.ModuleList(MODELS.build({'num_prototypes': number, **centering}) for number in head.num_prototypes)
            for _ in range(2)
        )
        self.koleo = MODELS.build(dict(type='KoLeoLoss'))
        deck = deck or {}
        if not set(deck) <= {'sync', 'select_scale'}:
            raise ValueError(f'deck {dict(deck)} may set sync and select_scale; its seed is that of the run')
        self.deck = SubnetDeck(backbone.space, rank=get_rank(), **deck) if self.runs_elastic else None

    @property
    def runs_elastic(self) -> bool:
        """Whether any loss needs the elastic student."""
        return self.weight_es1 > 0 or self.weight_es2 > 0

    @property
    def student(self) -> dict[str, nn.Module]:
        """The modules that the teacher averages, by their name in ``teacher``."""
        return {name: getattr(self, name) for name in self.teacher}

    def init_weights(self) -> None:
        """Initialise the student, then copy it to the teacher."""
        super().init_weights()
        self.reset_teacher()

    def reset_teacher(self) -> None:
        """Copy the student's weights to the teacher."""
        for name, module in self.student.items():
            self.teacher[name].load_state_dict(module.state_dict())

    def train(self, mode: bool = True) -> POA:
        """As usual, but for the teacher, which is always in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def extract_feat(self, inputs: Tensor, subnet: Subnet | None = None) -> tuple[Tensor, ...]:
        """Output of the teacher's backbone, the network that subnets are cut from, for images ``(B, C, H, W)``."""
        return self.teacher['backbone'](inputs, subnet)

    def loss(self, inputs: Sequence[Tensor], data_samples: Sequence | None = None) -> dict[str, Tensor]:
        """Losses of one step.

        Args:
            inputs: Views of ``B`` images, see :meth:`MultiCropBatch.collate`.
            data_samples: Samples with the ``mask`` of each image, see there.

        Returns:
            ``loss``, to be minimised, and its terms for the log: ``L_IS``, ``L_ES1``, ``L_ES2``, each with
            its parts (``L_IS_global``, ``L_IS_local``, ``L_IS_patch`` ..), means over the heads, and ``koleo``.

        Raises:
            TypeError, ValueError: If the batch breaks the contract.
        """
        check_views(inputs)  # before a size is read off one
        grid = self.backbone.mask_grid(tuple(inputs[0].shape[-2:]))
        batch = MultiCropBatch.collate(
            inputs, data_samples, grid, masked=self.patch_loss_active and self.patch_weight > 0
        )
        targets = self.teacher_targets(batch)
        subnet = self.deck.deal() if self.runs_elastic else None
        terms = self.loss_terms(batch, targets, subnet)
        return self.combine(terms)

    @torch.no_grad()
    def teacher_targets(self, batch: MultiCropBatch) -> TeacherTargets:
        """Centred targets of the unmasked global crops."""
        features = self.teacher['backbone'].extract_features(batch.global_views)
        num_cls = len(features.cls)
        rows = torch.cat([features.cls, features.patch[batch.masks]])  # (2B + M, D)
        logits = self.teacher['head'](rows)
        has_patches = self.patch_loss_active and self.patch_weight > 0
        return TeacherTargets(
            cls=[centre(head[:num_cls], self.teacher_temp) for centre, head in zip(self.class_centering, logits)],
            patch=[centre(head[num_cls:], self.teacher_temp) for centre, head in zip(self.patch_centering, logits)]
            if has_patches
            else [],
        )

    def student_output(self, batch: MultiCropBatch, subnet: Subnet | None) -> StudentOutput:
        """Features and logits of the student that computes ``subnet``; None is the intact student."""
        features, patches = self.backbone.extract_features(batch.global_views, subnet, batch.masks)
        rows = [features]
        if batch.local_views is not None:
            rows.append(self.backbone.extract_features(batch.local_views, subnet).cls)
        num_cls = sum(map(len, rows))
        logits = self.head(torch.cat([*rows, patches[batch.masks]]))  # ((2 + L) * B + M, K) for each head
        return StudentOutput(features, [head[:num_cls] for head in logits], [head[num_cls:] for head in logits])

    def loss_terms(self, batch: MultiCropBatch, targets: TeacherTargets, subnet: Subnet | None) -> dict[str, Tensor]:
        """Every term of the loss, unweighted: ``(heads,)`` for those on prototypes, a scalar for KoLeo."""
        terms: dict[str, Tensor] = {}
        students = []
        if self.weight_is > 0:
            intact = self.student_output(batch, None)
            terms |= self._cross_view_terms('L_IS', batch, targets, intact)
            students.append(intact)
        elif self.weight_es2 > 0:
            with torch.no_grad():
                intact = self.student_output(batch, None)
            # Autocast has kept casts of the weights that carry no gradient; the elastic student needs its own.
            torch.clear_autocast_cache()
        if self.runs_elastic:
            elastic = self.student_output(batch, subnet)
            students.append(elastic)
        if self.weight_es1 > 0:
            terms |= self._cross_view_terms('L_ES1', batch, targets, elastic)
        if self.weight_es2 > 0:
            num_global = len(batch.global_views)
            losses = [
                same_view_loss(teacher, student, num_global, self.student_temp)
                for teacher, student in zip(intact.cls, elastic.cls)
            ]
            terms |= _stacked('L_ES2', losses)
        if self.koleo_weight > 0:
            terms['koleo'] = torch.stack(
                [self.koleo(crop) for student in students for crop in student.features.chunk(2)]
            ).sum() / len(students)
        return terms

    def _cross_view_terms(
        self, name: str, batch: MultiCropBatch, targets: TeacherTargets, student: StudentOutput
    ) -> dict[str, Tensor]:
        losses = [class_loss(*pair, self.student_temp) for pair in zip(targets.cls, student.cls)]
        terms = _stacked(name, losses)
        if targets.patch:
            masked = batch.masks.sum(dim=1, keepdim=True).clamp(min=1)  # (2B, 1)
            weights = (1 / masked).expand_as(batch.masks)[batch.masks]  # (M,)
            terms[f'{name}_patch'] = torch.stack(
                [
                    patch_loss(*pair, weights, len(batch.masks), self.student_temp)
                    for pair in zip(targets.patch, student.patch)
                ]
            )
        return terms

    def combine(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weighted sum ``loss`` of :meth:`loss_terms`, beside the terms as scalars for the log."""
        weights = dict(L_IS=self.weight_is, L_ES1=self.weight_es1, L_ES2=self.weight_es2)
        log = {name: term.detach().mean() for name, term in terms.items()}
        total = self.koleo_weight * terms['koleo'] if 'koleo' in terms else 0.0
        for name, weight in weights.items():
            parts = {key: term for key, term in terms.items() if key.startswith(f'{name}_')}
            if not parts:
                continue
            value = sum(
                term.mean() * (self.patch_weight if key.endswith('_patch') else 1) for key, term in parts.items()
            )
            log[name] = value.detach()
            total = total + weight * value
        return {'loss': total, **log}


def _stacked(name: str, losses: Sequence[CropLosses]) -> dict[str, Tensor]:
    """Losses of the heads as two terms of shape ``(heads,)``."""
    on_global, on_local = zip(*losses)
    return {f'{name}_global': torch.stack(on_global), f'{name}_local': torch.stack(on_local)}
