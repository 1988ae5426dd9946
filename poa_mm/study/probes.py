"""Scores of a network from labels: a linear probe of frozen features, and fine-tuning."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from poa_mm.models.heads.linear_sweep_head import LinearSweepHead

PROBE_LRS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
PROBE_BATCH = 512


class Labelled(NamedTuple):
    """Images or features, one to a row, and their classes."""

    inputs: Tensor
    labels: Tensor

    def __getitem__(self, index) -> Labelled:
        return Labelled(self.inputs[index], self.labels[index])


def linear_probe(train: Labelled, test: Labelled, num_classes: int, seed: int, iterations: int = 1500) -> float:
    """Accuracy of a linear classifier of frozen features, the best of a sweep over learning rates.

    All rates train at once (:class:`~poa_mm.models.LinearSweepHead`), by AdamW along a cosine. Which one counts is
    decided on a tenth of ``train`` that is held out for that, not on ``test``.

    Args:
        train: Features ``(N, D)`` to learn from.
        test: Features to score on.
        num_classes: Number of classes.
        seed: Of the initialisation, the batches and the tenth.
        iterations: Steps of 512 images. Default: 1500.
    """
    generator = torch.Generator().manual_seed(seed)
    mean, std = train.inputs.mean(dim=0), train.inputs.std(dim=0).clamp(min=1e-6)
    train, test = (Labelled((part.inputs - mean) / std, part.labels) for part in (train, test))
    order = torch.randperm(len(train.labels), generator=generator)
    held_out, rest = order[: max(len(order) // 10, 1)], order[max(len(order) // 10, 1) :]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = LinearSweepHead(num_classes, train.inputs.shape[1], PROBE_LRS)
        head.init_weights()
    groups = [dict(params=part.parameters(), lr=lr) for part, lr in zip(head.classifiers, head.lrs)]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for _ in range(iterations):
        chosen = rest[torch.randint(len(rest), (min(PROBE_BATCH, len(rest)),), generator=generator)]
        batch = train[chosen]
        loss = sum(F.cross_entropy(logits, batch.labels) for logits in head((batch.inputs,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        by_rate = [_accuracy(logits, train[held_out].labels) for logits in head((train[held_out].inputs,))]
        best = by_rate.index(max(by_rate))
        return _accuracy(head((test.inputs,))[best], test.labels)


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(dim=1) == labels).double().mean().item()


def balanced(labels: Tensor, share: float, seed: int) -> Tensor:
    """Indices of a random ``share`` of each class, at least one image of it."""
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for value in labels.unique():
        members = (labels == value).nonzero().flatten()
        number = max(round(share * len(members)), 1)
        chosen.append(members[torch.randperm(len(members), generator=generator)[:number]])
    return torch.cat(chosen)


class FineTuning(NamedTuple):
    """How a whole network is trained with labels: AdamW along a cosine after a warm-up of a twentieth.

    Args:
        iterations: Steps.
        lr: Highest learning rate.
        batch_size: Images a step. Default: 64.
        weight_decay: Default: 0.05.
        crop: Smallest share of an image's area that a view shows. Default: 0.6.
        flip: Whether views are mirrored at random. Default: True.
    """

    iterations: int
    lr: float
    batch_size: int = 64
    weight_decay: float = 0.05
    crop: float = 0.6
    flip: bool = True


def views(images: Tensor, crop: float, flip: bool, generator: torch.Generator) -> Tensor:
    """A random crop of each image ``(B, C, H, W)``, mirrored or not, in the same size."""
    size = torch.rand(len(images), generator=generator).mul(1 - crop).add(crop).sqrt()
    mirror = torch.rand(len(images), generator=generator).sub(0.5).sign() if flip else torch.ones(len(images))
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = size * mirror, size
    theta[:, :, 2] = (torch.rand(len(images), 2, generator=generator) * 2 - 1) * (1 - size[:, None])
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode='border', align_corners=False)


def fine_tune(
    network: nn.Module, channels: int, train: Labelled, num_classes: int, how: FineTuning, seed: int
) -> nn.Module:
    """Train ``network``, which gives ``(B, channels)``, with a linear head; the classifier, in evaluation mode.

    Args:
        network: Changed in place.
        channels: Of its output.
        train: Normalised images ``(N, C, H, W)``.
        num_classes: Number of classes.
        how: The recipe, the same whatever ``network`` starts from.
        seed: Of head, batches and views.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(channels, num_classes)
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
    classifier = nn.Sequential(network, head)
    classifier.train()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=how.lr, weight_decay=how.weight_decay)
    warmup = max(how.iterations // 20, 1)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return (1 + math.cos(math.pi * (step - warmup) / max(how.iterations - warmup, 1))) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(how.iterations):
        while len(order) < how.batch_size:
            order = torch.cat([order, torch.randperm(len(train.labels), generator=generator)])
        chosen, order = order[: how.batch_size], order[how.batch_size :]
        batch = train[chosen]
        logits = classifier(views(batch.inputs, how.crop, how.flip, generator))
        optimizer.zero_grad()
        F.cross_entropy(logits, batch.labels).backward()
        optimizer.step()
        schedule.step()
    classifier.eval()
    return classifier


@torch.no_grad()
def classified(classifier: nn.Module, test: Labelled, batch_size: int = 1000) -> float:
    """Accuracy of a classifier of images."""
    logits = torch.cat([classifier(part) for part in test.inputs.split(batch_size)])
    return _accuracy(logits, test.labels)
