"""Accuracy of every classifier of a learning-rate sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS


@METRICS.register_module()
class SweepAccuracy(BaseMetric):
    """Top-1 accuracy, in percent, of the classifiers of a :class:`~poa_mm.models.LinearSweepHead`.

    Reports ``accuracy/top1``, the best of all, ``accuracy/best_lr``, the learning rate that reached it, and
    each rate's own as ``accuracy/top1_lr_0.01``.
    """

    default_prefix = 'accuracy'

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Keep which classifiers were right, not their scores: of 50,000 images those would fill gigabytes."""
        for sample in data_samples:
            correct = sample['pred_scores'].argmax(dim=1) == sample['gt_label']  # (R,)
            self.results.append((sample['lrs'], correct.cpu()))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Accuracies of all ranks' results."""
        lrs = results[0][0]
        accuracies = 100 * torch.stack([correct for _, correct in results]).double().mean(dim=0)  # (R,)
        best = int(accuracies.argmax())
        by_lr = {f'top1_lr_{lr:g}': accuracy for lr, accuracy in zip(lrs, accuracies.tolist())}
        return {'top1': float(accuracies[best]), 'best_lr': lrs[best], **by_lr}
