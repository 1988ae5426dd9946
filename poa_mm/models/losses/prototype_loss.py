"""Cross-entropy against prototypes without a matrix of logits that outlives its use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 2**24  # logits of one matrix product: 64 MiB
BLOCK = 2**18  # logits of one pass on the CPU: 1 MiB, which its cache holds from one operation to the next


class Targets(NamedTuple):
    """What consecutive rows of a student are to predict.

    Args:
        probs: Distributions over the prototypes, ``(S, K)``; a row may be a sum of several.
        index: Which of them each of the ``n`` student rows learns from, ``(n,)``.
        weights: Share of each row in its term of the loss, ``(n,)``.
        scale: Weight of the term in the total.
        start: Row of the student that the first entry of ``index`` belongs to. Default: 0.
    """

    probs: Tensor
    index: Tensor
    weights: Tensor
    scale: float
    start: int = 0

    def within(self, start: int, stop: int) -> tuple[slice, slice]:
        """Which of these targets belong to the student's rows ``start`` to ``stop``, and their places among those."""
        first, last = max(start, self.start), min(stop, self.start + len(self.index))
        last = max(first, last)
        return slice(first - self.start, last - self.start), slice(first - start, last - start)


def prototype_loss(
    embeddings: Tensor,
    prototypes: Tensor,
    targets: Sequence[Targets],
    temperature: float,
    chunk: int = CHUNK,
    prototypes_grad: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Weighted cross-entropies between targets and ``softmax(embeddings @ prototypes.T / temperature)``.

    Equal to :func:`class_loss`, :func:`patch_loss` and :func:`same_view_loss` on the logits, but

    - all targets of a student row share one softmax and one gradient, and
    - the gradient is computed along with the loss, some rows at a time. So no more than ``chunk`` logits exist at once,
      where the plain way keeps logits, log-probabilities and their gradients of all rows until the backward pass, and
      nothing is computed twice.

    Works in float32 whatever the autocast. The gradient of the total cannot be differentiated again.

    Args:
        embeddings: Of the student, ``(N, C)``.
        prototypes: ``(K, C)``.
        targets: What the rows learn. Several may cover the same rows; rows without any have no part in the loss.
        temperature: Of the student.
        chunk: How many logits are computed at a time, at least one row. Default: 16,777,216, which are 64 MiB.
        prototypes_grad: Where the gradient of the total with respect to the prototypes is added at once, ``(K, C)`` in
            float32, so that losses that share them share this memory; autograd then has none for the prototypes.
            Default: None, it is autograd's.

    Returns:
        The total, ``sum(scale * weights * cross-entropy)``, a scalar, and for each of ``targets`` its weighted
        cross-entropies ``(n,)``, for the log and without gradient.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        if prototypes_grad is not None:
            prototypes = prototypes.detach()
        total, *rows = _PrototypeLoss.apply(
            embeddings.float(), prototypes.float(), prototypes_grad, targets, temperature, chunk
        )
    return total, rows


class _PrototypeLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, embeddings, prototypes, prototypes_grad, targets, temperature, chunk):
        if ctx.needs_input_grad[1]:
            prototypes_grad = torch.zeros_like(prototypes)
        embeddings_grad = torch.empty_like(embeddings) if ctx.needs_input_grad[0] else None
        losses = [target.weights.new_zeros(len(target.index), dtype=torch.float32) for target in targets]
        block = BLOCK if embeddings.device.type == 'cpu' else chunk
        for start, stop in _chunks(len(embeddings), len(prototypes), chunk):
            scaled = embeddings[start:stop] / temperature
            logits = scaled @ prototypes.T  # (n, K), and soon their gradient
            for first, last in _chunks(stop - start, len(prototypes), block):
                places = [target.within(start + first, start + last) for target in targets]
                _losses_and_gradient(logits[first:last], list(zip(targets, losses, places)))
            if embeddings_grad is not None:
                torch.mm(logits, prototypes, out=embeddings_grad[start:stop])
            if prototypes_grad is not None:
                prototypes_grad.addmm_(logits.T, scaled)
        if embeddings_grad is not None:
            embeddings_grad /= temperature
        ctx.grads = (embeddings_grad, prototypes_grad if ctx.needs_input_grad[1] else None)
        ctx.mark_non_differentiable(*losses)
        total = sum((target.scale * loss.sum() for target, loss in zip(targets, losses)), embeddings.new_zeros(()))
        return total, *losses

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream, *_):
        grads, ctx.grads = ctx.grads, None  # of the size of the prototypes: they end with this pass
        return *(None if grad is None else grad.mul_(upstream) for grad in grads), None, None, None, None


def _chunks(rows: int, columns: int, size: int) -> Iterator[tuple[int, int]]:
    step = max(size // columns, 1)
    return ((start, min(start + step, rows)) for start in range(0, rows, step))


def _losses_and_gradient(logits: Tensor, parts: Sequence[tuple]) -> None:
    """Fill in the losses of some rows and turn their ``logits`` into the gradient of the total.

    Args:
        logits: ``(n, K)``.
        parts: Targets, the losses to fill in, and the places of these rows among the targets and of those among these.
    """
    taught = [
        (target, loss, own, place, target.probs.index_select(0, target.index[own]).float())
        for target, loss, (own, place) in parts
    ]
    likelihoods = [torch.linalg.vecdot(probs, logits[place]) for *_, place, probs in taught]
    peak = logits.amax(dim=1, keepdim=True)
    total = logits.sub_(peak).exp_().sum(dim=1, keepdim=True)
    normaliser = (peak + total.log()).squeeze(1)
    share = torch.zeros_like(normaliser)
    for (target, loss, own, place, probs), likelihood in zip(taught, likelihoods):
        weights, mass = target.weights[own], probs.sum(dim=1)
        loss[own] = weights * (mass * normaliser[place] - likelihood)
        share[place] += target.scale * weights * mass
    logits.mul_(share.unsqueeze(1) / total)
    for target, _, own, place, probs in taught:
        logits[place] -= probs.mul_((target.scale * target.weights[own]).unsqueeze(1))
