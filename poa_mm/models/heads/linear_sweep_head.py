"""Many linear classifiers side by side, one for each learning rate of a sweep."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS
from mmpretrain.models.heads import ClsHead
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from ..frozen import silence_frozen


@MODELS.register_module()
class LinearSweepHead(ClsHead):
    """Linear probes of the same frozen features that differ in their learning rate only (as in DINOv2's evaluation).

    The loss is the sum of all classifiers' losses. They share no parameter, so the gradient of each is its
    own and every one trains as if it were alone; ``LinearSweepOptimWrapperConstructor`` hands each its
    learning rate. One that diverges gets no gradient any more, so that it does not stop the others where gradients are
    looked at together: by a gradient scaler, or for clipping. Losses are logged as ``loss_lr_0.01``; with ``cal_acc``,
    accuracies of the batch likewise.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of the features.
        lrs: A learning rate for each classifier.
        init_cfg: mmengine's initialisation config. Default: normal of std 0.01, zero bias.
        **kwargs: Of mmpretrain's ``ClsHead``: ``loss`` (default: cross-entropy), ``cal_acc``, ``topk``.

    Raises:
        ValueError: If there is no learning rate, one is not positive, or two print alike in six digits.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        lrs: Sequence[float],
        init_cfg: dict | None = None,
        **kwargs,
    ):
        super().__init__(init_cfg=init_cfg or dict(type='Normal', layer='Linear', std=0.01), **kwargs)
        self.lrs = tuple(lrs)
        self.names = tuple(f'lr_{lr:g}' for lr in self.lrs)
        if not self.lrs or not all(lr > 0 for lr in self.lrs) or len(set(self.names)) < len(self.lrs):
            raise ValueError(f'lrs {list(lrs)} must be distinct positive learning rates, at least one')
        self.classifiers = nn.ModuleList(nn.Linear(in_channels, num_classes) for _ in self.lrs)
        self._register_state_dict_hook(_without_nan)

    def forward(self, feats: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Features, of which the last ``(B, in_channels)`` counts, to logits ``(B, num_classes)`` by rate."""
        feature = self.pre_logits(feats)
        return tuple(classifier(feature) for classifier in self.classifiers)

    def loss(self, feats: tuple[Tensor, ...], data_samples: list[DataSample], **kwargs) -> dict[str, Tensor]:
        """What ``ClsHead`` gives for one classifier, for each: ``{'loss_lr_0.01': ..., ...}``."""
        losses = {}
        for name, logits in zip(self.names, self(feats)):
            # Where it has diverged, a constant, through which no gradient goes: that of NaN would be NaN, whatever the
            # factor.
            logits = torch.where(logits.isfinite().all(), logits, 0.0)
            found = self._get_loss(logits, data_samples, **kwargs)
            losses |= {f'{key}_{name}': value for key, value in found.items()}
        return losses

    def predict(
        self, feats: tuple[Tensor, ...], data_samples: Sequence[DataSample | None] | None = None
    ) -> list[DataSample]:
        """Scores of every classifier.

        Returns:
            Data samples with ``pred_scores``, softmax ``(len(lrs), num_classes)``, and ``lrs`` beside it.
            There is no ``pred_label``, as it takes an evaluation to know which classifier is the best.
        """
        scores = torch.stack(self(feats), dim=1).softmax(dim=2)  # (B, R, C)
        samples = [sample or DataSample() for sample in data_samples or [None] * len(scores)]
        for sample, score in zip(samples, scores):
            sample.set_field(score, 'pred_scores')
            sample.set_field(self.lrs, 'lrs', field_type='metainfo')
        return samples


def _without_nan(head: nn.Module, state: dict[str, Tensor], prefix: str, metadata: dict) -> None:
    """Store classifiers that have diverged as zeros: a file with NaN in it would be refused, and with it the others."""
    for index in range(len(head.lrs)):
        names = [f'{prefix}classifiers.{index}.{name}' for name in ('weight', 'bias')]
        finite = all(bool(state[name].isfinite().all()) for name in names if name in state and not state[name].is_meta)
        if not finite:
            state.update({name: torch.zeros_like(state[name]) for name in names if name in state})


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LinearSweepOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Gives each classifier of a :class:`LinearSweepHead` its learning rate, read off the head.

    The learning rate of the optimizer is a factor on all of them, 1 as a rule.

    Raises:
        ValueError: If anything but the classifiers would train.
    """

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimizer and its wrapper."""
        model = getattr(model, 'module', model)  # out of DistributedDataParallel
        silence_frozen(model)
        model.train()  # when mmpretrain's Swin freezes what it is to
        others = [
            name
            for name, param in model.named_parameters()
            if param.requires_grad and not name.startswith('head.classifiers.')
        ]
        if others:
            raise ValueError(f'a linear probe needs a frozen backbone, but {", ".join(others[:3])} .. would train')
        keys = {f'head.classifiers.{index}.': dict(lr_mult=lr) for index, lr in enumerate(model.head.lrs)}
        self.paramwise_cfg = {**(self.paramwise_cfg or {}), 'custom_keys': keys}
        return super().__call__(model)
