"""Linear classification with frozen features, of every subnet: ridge regression, without a learning rate to choose.

Class features ``x`` predict the one-hot label by ``W^T (x - mean) + b``, with the ``W`` that makes the squared error
plus ``strength * ||W||^2`` smallest. It has a closed form in sums over the images, so that no features are kept. It is
not the linear probe of the paper, which SGD trains with augmented crops (``configs/probe``), but cheap enough for all
subnets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch.nn import functional as F

from poa_mm.elastic import Subnet

from .data import EvaluationData, chosen_subnets, open_data
from .features import feature_batches
from .progress import show_progress

STRENGTHS = tuple(10.0**power for power in range(-7, 2))  # relative to the mean variance of a feature
HELD_OUT = 5  # one image of the bank in so many, at random, chooses the strength


class RidgeSums:
    """Sums over images, from which a ridge regression is solved.

    Args:
        channels: Channels ``D`` of the features.
        device: Where the sums are. Default: the CPU.
    """

    def __init__(self, channels: int, device: torch.device | str = 'cpu'):
        options = dict(dtype=torch.float64, device=device)
        self.count = 0
        self.sum_x = torch.zeros(channels, **options)
        self.sum_xx = torch.zeros(channels, channels, **options)
        self.sum_y = torch.zeros(0, **options)  # images of each class
        self.sum_xy = torch.zeros(channels, 0, **options)

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add images: features ``(N, D)``, labels ``(N,)`` from 0 up; classes may be new."""
        if not len(labels):
            return
        self._grow(int(labels.max()) + 1)
        x = features.to(self.sum_x)
        y = F.one_hot(labels.to(x.device), len(self.sum_y)).to(x)
        self.count += len(x)
        self.sum_x += x.sum(0)
        self.sum_xx += x.T @ x
        self.sum_y += y.sum(0)
        self.sum_xy += x.T @ y

    def _grow(self, classes: int) -> None:
        new = max(0, classes - len(self.sum_y))
        self.sum_y = F.pad(self.sum_y, (0, new))
        self.sum_xy = F.pad(self.sum_xy, (0, new))

    def __add__(self, other: RidgeSums) -> RidgeSums:
        result = RidgeSums(len(self.sum_x), self.sum_x.device)
        for part in (self, other):
            result._grow(len(part.sum_y))
            result.count += part.count
            result.sum_x += part.sum_x
            result.sum_xx += part.sum_xx
            result.sum_y[: len(part.sum_y)] += part.sum_y
            result.sum_xy[:, : len(part.sum_y)] += part.sum_xy
        return result

    def solve(self, strengths: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
        """Weights ``(D, C)`` and bias ``(C,)`` for each strength, which is relative to the mean variance of a feature.

        Raises:
            ValueError: If there are no images, or their features are all alike.
        """
        if not self.count:
            raise ValueError('no images to fit')
        mean_x, mean_y = self.sum_x / self.count, self.sum_y / self.count
        covariance = self.sum_xx / self.count - mean_x.outer(mean_x)
        scale = covariance.diagonal().mean()
        if not scale > 0:
            raise ValueError('the features of all images are the same')
        # One decomposition serves all strengths.
        values, vectors = torch.linalg.eigh(covariance)
        target = vectors.T @ (self.sum_xy / self.count - mean_x.outer(mean_y))
        weights = [vectors @ (target / (values.clamp(min=0) + s * scale)[:, None]) for s in strengths]
        return [(weight, mean_y - mean_x @ weight) for weight in weights]

    def squared_error(self, weight: Tensor, bias: Tensor) -> float:
        """Mean over these images of the squared distance to the one-hot label; classes beyond the weights' count 0."""
        classes = weight.shape[1]
        known = min(classes, len(self.sum_y))
        square = (weight * (self.sum_xx @ weight)).sum() + 2 * bias @ (weight.T @ self.sum_x)
        square = square + self.count * bias @ bias
        hit = (weight[:, :known] * self.sum_xy[:, :known]).sum() + bias[:known] @ self.sum_y[:known]
        return float((square - 2 * hit) / self.count + 1)


def evaluate_linear(
    cfg: Config,
    backbone: nn.Module,
    subnets: Iterable[Subnet | str] | None = None,
    progress: bool = True,
    data: EvaluationData | None = None,
) -> dict[str, float]:
    """Accuracy in [0, 1] of a ridge regression on the class features of each subnet.

    Fitted to the images of ``knn.bank`` of the config, and scored on ``knn.query``. A fifth of the bank, drawn at
    random but the same in every run, chooses the strength of the penalty by its squared error; then all is fitted.

    The sums of a subnet take ``16 * D * (D + C)`` bytes for ``D`` channels and ``C`` classes, 30 MB for ViT-L on
    ImageNet-1K; ``knn.subnets_per_pass`` bounds them.

    Args:
        cfg: Config with the entries ``knn`` and ``model``, of which the data preprocessor is used.
        backbone: An elastic backbone, or what :func:`load_backbone` returns, on the device to use.
        subnets: What to score. Default: all of ``backbone.space``.
        progress: Show progress on rank 0. Default: True.
        data: What :func:`~poa_mm.evaluation.data.open_data` gave for ``cfg``. Default: opened here.

    Raises:
        ValueError: If the entry ``knn`` is missing or not valid, a subnet is not in the space or the data cannot be
            scored.
    """
    subnets = chosen_subnets(backbone, subnets)
    data = data or open_data(cfg)
    scores: dict[str, float] = {}
    for part in data.passes(subnets):
        scores |= _score(backbone, part, data, progress)
    return scores


def _score(backbone: nn.Module, subnets: Sequence[Subnet], data: EvaluationData, progress: bool) -> dict[str, float]:
    total = len(data.bank.dataset) + len(data.query.dataset)
    with show_progress(f'linear, {len(subnets)} subnets', total, progress) as advance:
        sums: dict[Subnet, tuple[RidgeSums, RidgeSums]] = {}  # that fit, and that choose
        choosing = _drawn(len(data.bank.dataset))
        done = 0
        for features, labels in feature_batches(backbone, data.bank, data.preprocessor, subnets, advance):
            chooses = choosing[done : done + len(labels)].to(labels.device)
            done += len(labels)
            for subnet, feature in features.items():
                if subnet not in sums:
                    sums[subnet] = tuple(RidgeSums(feature.shape[1], feature.device) for _ in range(2))
                for part, rows in zip(sums[subnet], (~chooses, chooses)):
                    part.update(feature[rows], labels[rows])
        classifiers = {subnet: _fit(*sums.pop(subnet)) for subnet in list(sums)}
        correct = dict.fromkeys(subnets, 0)
        for features, labels in feature_batches(backbone, data.query, data.preprocessor, subnets, advance):
            for subnet, (weight, bias) in classifiers.items():
                votes = features[subnet].to(weight) @ weight + bias
                correct[subnet] += int((votes.argmax(dim=1) == labels).sum())
    return {str(subnet): number / len(data.query.dataset) for subnet, number in correct.items()}


def _drawn(images: int) -> Tensor:
    """Which images choose the strength, boolean: at random, as classes may come in turns."""
    order = torch.randperm(images, generator=torch.Generator().manual_seed(0))
    return order < images // HELD_OUT


def _fit(fitted: RidgeSums, choosing: RidgeSums) -> tuple[Tensor, Tensor]:
    """Weights and bias with the strength that suits the images that choose."""
    if not choosing.count:
        raise ValueError(f'the bank has fewer than {HELD_OUT} images, too few for a linear classifier')
    errors = [choosing.squared_error(*solution) for solution in fitted.solve(STRENGTHS)]
    best = STRENGTHS[min(range(len(errors)), key=errors.__getitem__)]
    return (fitted + choosing).solve([best])[0]
