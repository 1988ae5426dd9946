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
        data_preprocessor: dict | nn.Module | None = None,
        init_cfg: dict | None = None,
    ):
        backbone = MODELS.build(backbone) if isinstance(backbone, dict) else backbone
        if isinstance(head, dict):
            head = MODELS.build({'in_channels': backbone.feature_channels, **head})
        if getattr(head, 'in_channels', backbone.feature_channels) != backbone.feature_channels:
            # Its first layer would take the features for those of a narrower subnet.
            raise ValueError(
                f'head.in_channels {head.in_channels} are not the {backbone.feature_channels} channels of the backbone'
            )
        if not isinstance(data_preprocessor, nn.Module):
            data_preprocessor = {'type': 'MultiCropDataPreprocessor', **(data_preprocessor or {})}
        super().__init__(backbone=backbone, head=head, data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        for name, value, least in (('micro_batches', micro_batches, 1), ('queue', queue, 0)):
            if not isinstance(value, int) or value < least:
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
            raise ValueError(
                f'queue {length} is for SinkhornKnopp; centering is {type(self.class_centering[0]).__name__}'
            )
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
            its parts (``L_IS_global``, ``L_IS_local``, ``L_IS_patch`` ..), means over the heads, ``koleo``, and of
            each head ``teacher_entropy_{K}`` and ``prototypes_in_use_{K}`` (:meth:`TeacherTargets.health`).

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
        rows = self._teacher_rows(batch)
        num_cls = batch.num_rows['global']
        targets = TeacherTargets([], [])
        heads = zip(self.teacher['head'].iterate(rows), self.class_centering, self.patch_centering)
        for logits, class_centering, patch_centering in heads:  # one head's logits at a time
            targets.cls.append(class_centering(logits[:num_cls], self.teacher_temp))
            if self._learns_patches:
                targets.patch.append(patch_centering(logits[num_cls:], self.teacher_temp))
        return targets

    def _teacher_rows(self, batch: MultiCropBatch) -> Tensor:
        """Class and masked patch features of the global crops, ``(2B + M, D)``."""
        features = self.teacher['backbone'].extract_features(batch.global_views)
        return torch.cat([features.cls, batch.masked_of(features.patch)])

    def _piecewise_targets(self, batch: MultiCropBatch | MicroBatches) -> PiecewiseTargets:
        """The same from the embeddings of all pieces, and of earlier batches where there is a queue."""
        cls, patch = [], []
        for piece in batch.pieces():
            embeddings, num_cls = self.teacher['head'].embed(self._teacher_rows(piece)), piece.num_rows['global']
            cls.append([rows[:num_cls] for rows in embeddings])
            patch.append([rows[num_cls:] for rows in embeddings])
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
        return PiecewiseTargets(cls, patch, centring, self.teacher_temp)

    # --- the students ---

    def student_output(self, piece: MultiCropBatch, subnet: Subnet | None, size: str) -> StudentOutput:
        """Of the student that computes ``subnet``, None is the intact one, on crops of one of ``piece.sizes``."""
        features, patches = self.student_features(piece, subnet, size)
        rows = features if size == 'local' else torch.cat([features, piece.masked_of(patches)])
        return StudentOutput(features, self.head.embed(rows))

    def student_features(self, piece: MultiCropBatch, subnet: Subnet | None, size: str) -> Features:
        """The same without the head."""
        views, masks = (piece.local_views, None) if size == 'local' else (piece.global_views, piece.masks)
        part = piece.part(size)
        return self.backbone.extract_features(views, subnet, masks, *(() if part is None else (part,)))

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
                weights = {f'{name}_patch': self.patch_weight}
                means[name] = sum(weights.get(key, 1) * mean for key, mean in parts.items())
        return means
