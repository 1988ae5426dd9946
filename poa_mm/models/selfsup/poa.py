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
from ..losses import SinkhornKnopp
from .batch import MicroBatches, MultiCropBatch, check_views
from .embedding_queue import EmbeddingQueue
from .frozen_teacher import FeatureMap, build_frozen_teacher, complete
from .grids import check_crops
from .student_step import StudentStep
from .students import StudentOutput
from .targets import Centring, PiecewiseTargets, TeacherTargets


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
        queue: Class tokens of earlier batches, of all ranks, that ``SinkhornKnopp`` takes into account, for small
            batches. Their embeddings are kept, and go through the prototypes of the present. Default: 0.
        micro_batches: Pieces in which a rank's batch goes through the networks, for less memory: the losses and
            gradients are those of the whole batch, to rounding. Default: 1.
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
        queue: int = 0,
        micro_batches: int = 1,
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
        for name, value, least in (('micro_batches', micro_batches, 1), ('queue', queue, 0)):
            if type(value) is not int or value < least:
                raise ValueError(f'{name} {value!r} is not a whole number from {least} up')
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
        self.micro_batches = micro_batches
        self.queues = self._queues(queue)
        if micro_batches > 1 and not hasattr(self.class_centering[0], 'shift'):
            raise ValueError(f'micro_batches {micro_batches} needs a centering with shift(), as SinkhornKnopp has it')
        self.koleo = MODELS.build(dict(type='KoLeoLoss'))
        deck = deck or {}
        if not set(deck) <= {'sync', 'select_scale'}:
            raise ValueError(f'deck {dict(deck)} may set sync and select_scale; its seed is that of the run')
        self.deck = SubnetDeck(backbone.space, rank=get_rank(), **deck) if self.runs_elastic else None

    def _queues(self, length: int) -> nn.ModuleList | None:
        if length == 0:
            return None
        if not isinstance(self.class_centering[0], SinkhornKnopp):
            kind = type(self.class_centering[0]).__name__
            raise ValueError(f'queue {length} is for SinkhornKnopp; the centering is {kind}')
        channels = self.head.bottleneck_channels
        return nn.ModuleList(EmbeddingQueue(length, channels) for _ in self.head.num_prototypes)

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
        batch = self._batch(inputs, data_samples)
        targets = self.teacher_targets(batch)
        subnet = self.deck.deal() if self.runs_elastic else None
        total, terms = self.loss_terms(batch, targets, subnet)
        return {'loss': total, **self.log(terms), **targets.health()}

    @property
    def _learns_patches(self) -> bool:
        return self.patch_loss_active and self.patch_weight > 0

    def _batch(self, inputs: Sequence[Tensor], data_samples: Sequence | None) -> MultiCropBatch | MicroBatches:
        check_views(inputs)  # before a size is read off one
        check_crops(inputs, self.backbone.space)
        grid = self.backbone.mask_grid(tuple(inputs[0].shape[-2:]))
        if self.micro_batches == 1:
            return MultiCropBatch.collate(inputs, data_samples, grid, self._learns_patches)
        return MicroBatches(inputs, data_samples, grid, self._learns_patches, self.micro_batches)

    # --- the teacher ---

    @torch.no_grad()
    def teacher_targets(self, batch: MultiCropBatch | MicroBatches) -> TeacherTargets | PiecewiseTargets:
        """Centred targets of the unmasked global crops."""
        if isinstance(batch, MicroBatches) or self.queues is not None:
            return self._piecewise_targets(batch)
        num_cls, rows, features = self._teach(batch)
        targets = TeacherTargets([], [], features)
        heads = zip(self.teacher['head'].iterate(rows), self.class_centering, self.patch_centering)
        for logits, class_centering, patch_centering in heads:  # one head's logits at a time
            targets.cls.append(class_centering(logits[:num_cls], self.teacher_temp))
            if self._learns_patches:
                targets.patch.append(patch_centering(logits[num_cls:], self.teacher_temp))
        return targets

    def _teach(self, piece: MultiCropBatch) -> tuple[int, Tensor, Features | None]:
        """What teaches makes of the global crops.

        Returns:
            Number of class features, ``2B``; these and the masked patch features, ``(2B + M, D)``; and all features, if
            students learn them as well.
        """
        views = piece.global_views
        if self.frozen_teacher is None:
            features = self.teacher['backbone'].extract_features(views)
        else:
            self.frozen_teacher.check_loaded()
            features = self.frozen_teacher.extract_features(views, self.backbone.mask_grid(tuple(views.shape[-2:])))
        rows = torch.cat([features.cls, piece.masked_of(features.patch)])
        return len(features.cls), rows, features if self.feature_weight > 0 else None

    @property
    def feature_weight(self) -> float:
        """Of the loss between features of students and of another network that teaches; 0 without one."""
        return 0.0 if self.frozen_teacher is None else self.frozen_teacher.feature_weight

    def _piecewise_targets(self, batch: MultiCropBatch | MicroBatches) -> PiecewiseTargets:
        """The same from the embeddings of all pieces, and of earlier batches where there is a queue."""
        cls, patch, features = [], [], []
        for piece in batch.pieces():
            num_cls, rows, learnt = self._teach(piece)
            embeddings = self.teacher['head'].embed(rows)
            cls.append([rows[:num_cls] for rows in embeddings])
            patch.append([rows[num_cls:] for rows in embeddings])
            features.append(learnt)
        centring = []
        for head, prototypes in enumerate(self.teacher['head'].matrices()):
            on_cls, on_patch = (torch.cat([rows[head] for rows in pieces]) for pieces in (cls, patch))
            stale = None if self.queues is None else self.queues[head].of_rank()
            shift = self.class_centering[head].shift(on_cls, prototypes, self.teacher_temp, stale)
            if self.queues is not None:
                self.queues[head].push(on_cls)
            on_patches = None
            if self._learns_patches:
                on_patches = self.patch_centering[head].shift(on_patch, prototypes, self.teacher_temp)
            centring.append(Centring(prototypes, shift, on_patches))
        return PiecewiseTargets(cls, patch, features, centring, self.teacher_temp)

    # --- the students ---

    def student_output(self, piece: MultiCropBatch, subnet: Subnet | None, size: str) -> StudentOutput:
        """Of the student that computes ``subnet``, None is the intact one, on crops of one of ``piece.sizes``."""
        features, patches = self.student_features(piece, subnet, size)
        if size == 'local':
            return StudentOutput(features, self.head.embed(self._to_teacher(features)))
        if self.feature_weight == 0:
            rows = self._to_teacher(torch.cat([features, piece.masked_of(patches)]))
            return StudentOutput(features, self.head.embed(rows))
        cls, patches = self._to_teacher(features), self._to_teacher(patches)
        rows = torch.cat([cls, piece.masked_of(patches)])
        return StudentOutput(features, self.head.embed(rows), Features(cls, piece.on_native_grid(patches)))

    def student_features(self, piece: MultiCropBatch, subnet: Subnet | None, size: str) -> Features:
        """Class and patch features of the same."""
        views, masks = (piece.local_views, None) if size == 'local' else (piece.global_views, piece.masks)
        part = piece.part(size)
        return self.backbone.extract_features(views, subnet, masks, *(() if part is None else (part,)))

    def _to_teacher(self, tokens: Tensor) -> Tensor:
        """Tokens of a student in the space of the features that the heads are for."""
        return tokens if self.feature_map is None else self.feature_map(tokens)

    def on_grid_of(self, piece: MultiCropBatch, subnet: Subnet | None) -> MultiCropBatch:
        """The piece with masks on the grid of the patches of ``subnet``."""
        size = tuple(piece.global_views.shape[-2:])
        return piece.on_grid(self.backbone.mask_grid(size, subnet), native=self.backbone.mask_grid(size))

    def loss_terms(
        self,
        batch: MultiCropBatch | MicroBatches,
        targets: TeacherTargets | PiecewiseTargets,
        subnet: Subnet | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to be minimised and, without gradient, every term of it.

        Returns:
            The weighted sum, a scalar, and the unweighted terms: ``(heads,)`` for those on prototypes, a scalar for
            KoLeo.
        """
        return StudentStep(self, batch, targets, subnet).run()

    def log(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """The terms of :meth:`loss_terms` as means over the heads, and ``L_IS``, ``L_ES1`` and ``L_ES2`` in all."""
        means = {name: term.mean() for name, term in terms.items()}
        for name in ('L_IS', 'L_ES1', 'L_ES2'):
            parts = {key: mean for key, mean in means.items() if key.startswith(f'{name}_')}
            if parts:
                weights = {f'{name}_patch': self.patch_weight, f'{name}_feature': self.feature_weight}
                means[name] = sum(weights.get(key, 1) * mean for key, mean in parts.items())
        return means
