"""POA: pre-training once for models of all sizes."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from mmengine.dist import get_rank
from mmengine.registry import MODELS
from mmpretrain.models.selfsup import BaseSelfSupervisor
from torch import Tensor, nn

from poa_mm.elastic import Subnet, SubnetDeck

from ..backbones.elastic_backbone import Features
from ..losses import Targets, feature_loss, prototype_loss
from .batch import MultiCropBatch, check_views
from .early_backward import EarlyBackward, hand_over
from .frozen_teacher import FeatureMap, build_frozen_teacher, complete
from .grids import check_crops
from .objectives import cross_view, same_view
from .students import StudentOutput, student_loss
from .targets import TeacherTargets


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

    The elastic student learns from the intact one's output, not through it, and the losses are sums over crops. So each
    student goes through the global and then through the local crops with a backward pass of its own for either, before
    the next starts: one graph of the four exists at a time (:class:`EarlyBackward`). At 50 images of the ViT-L recipe,
    that halves the memory of one backward pass for all (``benchmarks/bench_memory.py``).

    With a ``frozen_teacher`` (ours, not the paper's), a network that stays what it is teaches (:class:`FrozenTeacher`)
    under the heads of ``teacher``, which is the average of the student as ever, and what subnets are cut from. If it is
    another network than the supernet, a :class:`FeatureMap` takes each token of a student into the space of its
    features. The heads work there; there, ``L_IS_feature`` and ``L_ES1_feature``, ``feature_weight`` of which is added
    to L_IS and L_ES1, compare all tokens of a global crop, masked for the student, with the teacher's.

    What changes over a run is set from outside: ``teacher_temp`` and ``patch_loss_active`` by
    :class:`poa_mm.engine.POAScheduleHook`, ``loss_scale``, by which float16's small gradients are multiplied on their
    way, by :class:`poa_mm.engine.POAAmpOptimWrapper`.

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
        frozen_teacher: What teaches in the place of the average: ``'source'``, the network that the run starts from, or
            ``dict(backbone=..)``, another one; see :func:`build_frozen_teacher`. Default: None.
        deck: ``sync`` and ``select_scale`` of the :class:`~poa_mm.elastic.SubnetDeck`. Default: neither.
        data_preprocessor: Default type: :class:`MultiCropDataPreprocessor`.
        init_cfg: mmengine's initialisation config. Default: None.

    Raises:
        ValueError: If a weight is negative, no student has anything to learn, ``deck`` sets anything else, or the head
            is made for another number of channels than the backbone has.
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
        frozen_teacher: dict | str | None = None,
        data_preprocessor: dict | nn.Module | None = None,
        init_cfg: dict | None = None,
    ):
        backbone = MODELS.build(backbone) if isinstance(backbone, dict) else backbone
        guide = build_frozen_teacher(frozen_teacher, backbone)
        mapped = guide is not None and not guide.is_source
        channels = guide.channels(backbone) if mapped else backbone.feature_channels
        if isinstance(head, dict):
            head = MODELS.build({'in_channels': channels, **head})
        if getattr(head, 'in_channels', channels) != channels:
            # Its first layer would take the features for those of a narrower subnet.
            whose = 'frozen teacher, whose features the students are mapped to' if mapped else 'backbone'
            raise ValueError(f'head.in_channels {head.in_channels} are not the {channels} channels of the {whose}')
        if not isinstance(data_preprocessor, nn.Module):
            data_preprocessor = {'type': 'MultiCropDataPreprocessor', **(data_preprocessor or {})}
        super().__init__(backbone=backbone, head=head, data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        weights = dict(
            weight_is=weight_is,
            weight_es1=weight_es1,
            weight_es2=weight_es2,
            patch_weight=patch_weight,
            koleo_weight=koleo_weight,
        )
        if not all(math.isfinite(weight) for weight in weights.values()):
            raise ValueError(f'weights must be finite numbers; got {weights}')
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
        self.loss_scale = 1.0

        self.teacher = nn.ModuleDict(dict(backbone=copy.deepcopy(self.backbone), head=copy.deepcopy(self.head)))
        self.teacher.requires_grad_(False)
        self.frozen_teacher = guide
        self.feature_map = FeatureMap(backbone.feature_channels, channels) if mapped else None
        if guide is not None:
            self._register_load_state_dict_pre_hook(complete, with_module=True)
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
            its parts (``L_IS_global``, ``L_IS_local``, ``L_IS_patch``, ``L_IS_feature`` if another network teaches ..),
            means over the heads, ``koleo``, and of each head ``teacher_entropy_{K}`` and ``prototypes_in_use_{K}``
            (:meth:`TeacherTargets.health`).

        Raises:
            TypeError, ValueError: If the batch breaks the contract.
        """
        check_views(inputs)  # before a size is read off one
        check_crops(inputs, self.backbone.space)
        grid = self.backbone.mask_grid(tuple(inputs[0].shape[-2:]))
        batch = MultiCropBatch.collate(
            inputs, data_samples, grid, masked=self.patch_loss_active and self.patch_weight > 0
        )
        targets = self.teacher_targets(batch)
        subnet = self.deck.deal() if self.runs_elastic else None
        total, terms = self.loss_terms(batch, targets, subnet)
        return {'loss': total, **self.log(terms), **targets.health()}

    @torch.no_grad()
    def teacher_targets(self, batch: MultiCropBatch) -> TeacherTargets:
        """Centred targets of the unmasked global crops."""
        features = self._teach(batch.global_views)
        num_cls = len(features.cls)
        rows = torch.cat([features.cls, batch.masked_of(features.patch)])  # (2B + M, D)
        targets = TeacherTargets([], [], features if self.feature_weight > 0 else None)
        heads = zip(self.teacher['head'].iterate(rows), self.class_centering, self.patch_centering)
        for logits, class_centering, patch_centering in heads:  # one head's logits at a time
            targets.cls.append(class_centering(logits[:num_cls], self.teacher_temp))
            if self.patch_loss_active and self.patch_weight > 0:
                targets.patch.append(patch_centering(logits[num_cls:], self.teacher_temp))
        return targets

    def _teach(self, views: Tensor) -> Features:
        """What teaches makes of global views ``(2B, C, H, W)``."""
        if self.frozen_teacher is None:
            return self.teacher['backbone'].extract_features(views)
        self.frozen_teacher.check_loaded()
        return self.frozen_teacher.extract_features(views, self.backbone.mask_grid(tuple(views.shape[-2:])))

    @property
    def feature_weight(self) -> float:
        """Of the loss between features of students and of another network that teaches; 0 without one."""
        return 0.0 if self.frozen_teacher is None else self.frozen_teacher.feature_weight

    def student_output(self, batch: MultiCropBatch, subnet: Subnet | None, size: str) -> StudentOutput:
        """Of the student that computes ``subnet``, None is the intact one, on crops of one of ``batch.sizes``."""
        if size == 'local':
            features = self.backbone.extract_features(batch.local_views, subnet).cls
            return StudentOutput(features, self.head.embed(self._to_teacher(features)))
        features, patches = self.backbone.extract_features(batch.global_views, subnet, batch.masks)
        if self.feature_weight == 0:
            rows = self._to_teacher(torch.cat([features, batch.masked_of(patches)]))
            return StudentOutput(features, self.head.embed(rows))
        cls, patches = self._to_teacher(features), self._to_teacher(patches)
        rows = torch.cat([cls, batch.masked_of(patches)])
        return StudentOutput(features, self.head.embed(rows), Features(cls, batch.on_native_grid(patches)))

    def _to_teacher(self, tokens: Tensor) -> Tensor:
        """Tokens of a student in the space of the features that the heads are for."""
        return tokens if self.feature_map is None else self.feature_map(tokens)

    def on_grid_of(self, batch: MultiCropBatch, subnet: Subnet | None) -> MultiCropBatch:
        """The batch with masks on the grid of the patches of ``subnet``."""
        size = tuple(batch.global_views.shape[-2:])
        return batch.on_grid(self.backbone.mask_grid(size, subnet), native=self.backbone.mask_grid(size))

    def loss_terms(
        self, batch: MultiCropBatch, targets: TeacherTargets, subnet: Subnet | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to be minimised and, without gradient, every term of it.

        Returns:
            The weighted sum, a scalar, and the unweighted terms: ``(heads,)`` for those on prototypes, a scalar for
            KoLeo.
        """
        prototypes = self.head.matrices()  # both students have the same
        # What all passes teach the prototypes is added up beside autograd: they are most of the head's weights.
        grads = [torch.zeros_like(value, dtype=torch.float32) if value.requires_grad else None for value in prototypes]
        early = EarlyBackward(self._trained(), self.loss_scale)
        seen = self._seen_by_intact(batch, prototypes)
        students = [student for student in ('intact', 'elastic') if self._runs(student)]
        passes = [(student, size) for student in students for size in batch.sizes]
        terms = {}
        crops_of = {'intact': batch, 'elastic': self.on_grid_of(batch, subnet)}
        for student, size in passes:
            crops = crops_of[student]
            output = self.student_output(crops, None if student == 'intact' else subnet, size)
            objectives = (
                self._objectives(student, size, crops, targets, seen, head) for head in range(len(prototypes))
            )
            teaches = student == 'intact' and self.weight_es2 > 0
            loss, more, probs = student_loss(
                output, prototypes, grads, objectives, self.student_temp, keep=batch.num_rows[size] * teaches
            )
            if size == 'global' and self.koleo_weight > 0:
                koleo = self._koleo_of(output.features)
                loss = loss + self.koleo_weight * koleo
                more['koleo'] = koleo.detach()
            if output.mapped is not None:
                loss = loss + self._match_features(student, output.mapped, targets, more)
            if teaches:
                seen[size] = probs
            terms |= {name: terms.get(name, 0) + term for name, term in more.items()}
            if (student, size) != passes[-1]:
                early.add(loss)
        total = early.total() + loss
        return total + hand_over(torch.zeros_like(total), prototypes, grads), terms

    def _runs(self, student: str) -> bool:
        return self.weight_is > 0 if student == 'intact' else self.runs_elastic

    @torch.no_grad()
    def _seen_by_intact(self, batch: MultiCropBatch, prototypes: Sequence[Tensor]) -> dict[str, list[Tensor]]:
        """What an intact student that teaches, but does not learn, makes of the class tokens; of others empty.

        Returns:
            By size of crops its distributions on each head, ``(num_rows, K)``.
        """
        if self.weight_is > 0 or self.weight_es2 == 0:
            return {}
        seen: dict[str, list[Tensor]] = {}
        for size in batch.sizes:
            output, keep = self.student_output(batch, None, size), batch.num_rows[size]
            for embeddings, matrix in zip(output.embeddings, prototypes):
                *_, probs = prototype_loss(embeddings[:keep], matrix.detach(), [], self.student_temp, keep=keep)
                seen.setdefault(size, []).append(probs)
        # Autocast has kept casts of the weights that carry no gradient; the elastic student needs its own.
        torch.clear_autocast_cache()
        return seen

    def _match_features(
        self, student: str, mapped: Features, targets: TeacherTargets, terms: dict[str, Tensor]
    ) -> Tensor | float:
        """Weighted distance of a student's features from those of another network that teaches, for the loss.

        Class tokens and patches count half each. The distance itself is added to ``terms``.
        """
        name, weight = ('L_IS', self.weight_is) if student == 'intact' else ('L_ES1', self.weight_es1)
        if weight == 0:
            return 0.0
        value = sum(feature_loss(*tokens) for tokens in zip(mapped, targets.features)) / 2
        terms[f'{name}_feature'] = value.detach()
        return weight * self.feature_weight * value

    def _trained(self) -> list[Tensor]:
        """What the students learn, but for the prototypes."""
        prototypes = set(self.head.prototypes.parameters())
        modules = [*self.student.values(), *([] if self.feature_map is None else [self.feature_map])]
        params = (param for module in modules for param in module.parameters())
        return [param for param in params if param not in prototypes]

    def _koleo_of(self, features: Tensor) -> Tensor:
        """KoLeo of a student's class features of the global crops: their sum, the students' share in the mean."""
        num_students = (self.weight_is > 0) + self.runs_elastic
        return sum(self.koleo(crop) for crop in features.chunk(2)) / num_students

    def _objectives(
        self,
        student: str,
        size: str,
        batch: MultiCropBatch,
        targets: TeacherTargets,
        seen: dict[str, list[Tensor]],
        head: int,
    ) -> dict[str, Targets]:
        """What one student learns from crops of one size on one head, by term."""
        heads = len(self.head.num_prototypes)
        others = {'intact': ('L_IS', self.weight_is), 'elastic': ('L_ES1', self.weight_es1)}
        name, weight = others[student]
        objectives = {}
        if weight > 0:
            objectives |= cross_view(name, weight / heads, self.patch_weight, size, batch, targets, head)
        if student == 'elastic' and self.weight_es2 > 0:
            objectives[f'L_ES2_{size}'] = same_view(seen[size][head], self.weight_es2 / heads)
        return objectives

    def log(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """The terms of :meth:`loss_terms` as means over the heads, and ``L_IS``, ``L_ES1`` and ``L_ES2`` in all."""
        means = {name: term.mean() for name, term in terms.items()}
        for name in ('L_IS', 'L_ES1', 'L_ES2'):
            parts = {key: mean for key, mean in means.items() if key.startswith(f'{name}_')}
            if parts:
                weights = {f'{name}_patch': self.patch_weight, f'{name}_feature': self.feature_weight}
                means[name] = sum(weights.get(key, 1) * mean for key, mean in parts.items())
        return means
