"""Accuracy of every classifier of a learning-rate sweep."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmengine.registry import METRICS


@METRICS.register_module()
class SweepAccuracy(BaseMetric):
    """Top-1 accuracy, in percent, of the classifiers of a :class:`~poa_mm.models.LinearSweepHead`.

    Reports ``accuracy/top1``, the best of all, ``accuracy/best_lr``, the learning rate that reached it, and
    each rate's own as ``accuracy/top1_lr_0.01``. The best of many on the images that chose it is a little too good, and
    the log says so; ``lr`` takes a rate that was chosen on others.

    A classifier that has diverged, whose scores are NaN or all alike, is never right, and is warned of.

    Args:
        lr: The learning rate that counts as the best. Default: the one that is, on these images.
        **kwargs: Of mmengine's ``BaseMetric``.
    """

    default_prefix = 'accuracy'

    def __init__(self, lr: float | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.lr = lr

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Keep which classifiers were right, not their scores: of 50,000 images those would fill gigabytes."""
        for sample in data_samples:
            scores = sample['pred_scores']  # (R, C)
            alive = scores.isfinite().all(dim=1) & ((scores.amax(dim=1) > scores.amin(dim=1)) | (scores.shape[1] == 1))
            correct = (scores.argmax(dim=1) == sample['gt_label']) & alive  # (R,)
            self.results.append((sample['lrs'], correct.cpu(), alive.cpu()))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Accuracies of all ranks' results.

        Raises:
            ValueError: If ``lr`` is none of the rates.
        """
        lrs = results[0][0]
        accuracies = 100 * torch.stack([correct for _, correct, _ in results]).double().mean(dim=0)  # (R,)
        dead = ~torch.stack([alive for *_, alive in results]).any(dim=0)
        if dead.any():
            names = ', '.join(f'{lr:g}' for lr, is_dead in zip(lrs, dead) if is_dead)
            print_log(f'The classifiers of the learning rates {names} have diverged.', 'current', logging.WARNING)
        if self.lr is None:
            best = int(accuracies.argmax())
            if len(lrs) > 1:
                text = f'accuracy/top1 is the best of {len(lrs)} learning rates, chosen on these very images.'
                print_log(text, 'current')
        elif (best := next((index for index, lr in enumerate(lrs) if f'{lr:g}' == f'{self.lr:g}'), None)) is None:
            raise ValueError(f'learning rate {self.lr:g} is not among those of the sweep: {lrs}')
        by_lr = {f'top1_lr_{lr:g}': accuracy for lr, accuracy in zip(lrs, accuracies.tolist())}
        return {'top1': float(accuracies[best]), 'best_lr': lrs[best], **by_lr}
