"""Cross-entropy against prototypes without a matrix of logits that outlives its use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .logits import PARTS, float32_products, in_parts, padded

CHUNK = 2**24  # logits of one matrix product: 64 MiB
BLOCK = 2**20  # logits of one pass on the CPU: 4 MiB, which its cache holds from one operation to the next


class Targets(NamedTuple):
    """What consecutive rows of a student are to predict.

    Args:
        probs: Distributions over the prototypes, or sums of several, ``(n, K)``; best laid out as
            :func:`prototype_logits` lays out logits.
        weights: Share of each row in its term of the loss, ``(n,)``.
        scale: Weight of the term in the total.
        start: Row of the student that learns from the first of ``probs``. Default: 0.
    """

    probs: Tensor
    weights: Tensor
    scale: float
    start: int = 0

    def within(self, start: int, stop: int) -> tuple[slice, slice]:
        """Which of these targets belong to the student's rows ``start`` to ``stop``, and their places among those."""
        first, last = max(start, self.start), min(stop, self.start + len(self.weights))
        last = max(first, last)
        return slice(first - self.start, last - self.start), slice(first - start, last - start)


def prototype_loss(
    embeddings: Tensor,
    prototypes: Tensor,
    targets: Sequence[Targets],
    temperature: float,
    chunk: int = CHUNK,
    prototypes_grad: Tensor | None = None,
    keep: int = 0,
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Weighted cross-entropies between targets and ``softmax(embeddings @ prototypes.T / temperature)``.

    Equal to :func:`class_loss`, :func:`patch_loss` and :func:`same_view_loss` on the logits, but

    - all targets of a student row share one softmax and one gradient, and
    - the gradient is computed along with the loss, some rows at a time. So some ``chunk`` logits exist at once,
      where the plain way keeps logits, log-probabilities and their gradients of all rows until the backward pass, and
      nothing is computed twice.

    Works in float32 whatever the autocast; of its products, :func:`float32_products` says more. The gradient of the
    total cannot be differentiated again.

    Args:
        embeddings: Of the student, ``(N, C)``.
        prototypes: ``(K, C)``.
        targets: What the rows learn. Several may cover the same rows; rows without any have no part in the loss.
        temperature: Of the student.
        chunk: How many logits are computed at a time, at least those of one row; then rows are rounded up to a
            multiple of 8. Default: 16,777,216, which are 64 MiB.
        prototypes_grad: Where the gradient of the total with respect to the prototypes is added at once, ``(K, C)`` in
            float32, so that losses that share them share this memory; autograd then has none for the prototypes.
            Default: None, it is autograd's.
        keep: Of how many leading rows, up to ``N``, the softmax is wanted. Default: 0.

    Returns:
        The total, ``sum(scale * weights * cross-entropy)``, a scalar; for each of ``targets`` its weighted
        cross-entropies ``(n,)``, for the log; and the softmax of the leading rows, ``(keep, K)``. Only the total has a
        gradient.

    Raises:
        ValueError: If there are fewer than ``keep`` rows.
    """
    if not 0 <= keep <= len(embeddings):
        raise ValueError(f'keep {keep} is not in 0 .. {len(embeddings)}, the number of rows')
    with float32_products(embeddings.device):
        if prototypes_grad is not None:
            prototypes = prototypes.detach()
        total, kept, *rows = _PrototypeLoss.apply(
            embeddings.float(), prototypes.float(), prototypes_grad, targets, temperature, chunk, keep
        )
    return total, rows, kept


class _PrototypeLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, embeddings, prototypes, prototypes_grad, targets, temperature, chunk, keep):
        if ctx.needs_input_grad[1]:
            prototypes_grad = torch.zeros_like(prototypes)
        embeddings_grad = torch.empty_like(embeddings) if ctx.needs_input_grad[0] else None
        losses = [target.weights.new_zeros(len(target.weights), dtype=torch.float32) for target in targets]
        kept = prototypes.new_empty(len(prototypes), keep)
        step = max(chunk // len(prototypes), 1)
        for start in range(0, len(embeddings), step):
            stop = min(start + step, len(embeddings))
            scaled = padded(embeddings[start:stop] / temperature)
            terms = [(target, loss, *target.within(start, stop)) for target, loss in zip(targets, losses)]
            logits = _losses_and_gradient(scaled, prototypes, terms, kept[:, start:stop])
            if embeddings_grad is not None:
                torch.mm(logits.T[: stop - start], prototypes, out=embeddings_grad[start:stop])
            if prototypes_grad is not None:
                prototypes_grad.addmm_(logits, scaled)
        if embeddings_grad is not None:
            embeddings_grad /= temperature
        ctx.grads = (embeddings_grad, prototypes_grad if ctx.needs_input_grad[1] else None)
        ctx.mark_non_differentiable(kept := kept.T, *losses)
        total = sum((target.scale * loss.sum() for target, loss in zip(targets, losses)), embeddings.new_zeros(()))
        return total, kept, *losses

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream, *_):
        grads, ctx.grads = ctx.grads, None  # of the size of the prototypes: they end with this pass
        return *(None if grad is None else grad.mul_(upstream) for grad in grads), None, None, None, None, None


def _losses_and_gradient(
    scaled: Tensor, prototypes: Tensor, terms: Sequence[tuple[Targets, Tensor, slice, slice]], kept: Tensor
) -> Tensor:
    """Fill in losses and softmax of some rows; gives the gradient of the total with respect to their logits.

    Goes through blocks of prototypes twice, once for logits and the normaliser of their softmax and once for the
    gradient.

    Args:
        scaled: Embeddings over the temperature, ``(n, C)``.
        prototypes: ``(K, C)``.
        terms: Targets, the losses to fill in, and the places of these rows among the targets and of those among these.
        kept: For the softmax of the first of these rows, ``(K, 0 .. n)``.

    Returns:
        ``(K, n)``.
    """
    logits = scaled.new_empty(len(prototypes), len(scaled))  # and soon their gradient
    number, rows = logits.shape
    step = max(BLOCK // (rows * PARTS), 1) * PARTS if logits.device.type == 'cpu' else number
    blocks = [slice(start, start + step) for start in range(0, number, step)]
    probs = [target.probs[own].T for target, _, own, _ in terms]  # (K, m) each
    likelihoods = [logits.new_zeros(other.shape[1]) for other in probs]
    masses = [torch.zeros_like(likelihood) for likelihood in likelihoods]
    peaks, totals = logits.new_empty(2, len(blocks), rows)
    for block, peak, total in zip(blocks, peaks, totals):
        values = in_parts(torch.mm(prototypes[block], scaled.T, out=logits[block]))
        for (*_, place), other, likelihood, mass in zip(terms, probs, likelihoods, masses):
            taught = in_parts(other[block])
            likelihood += (taught * values[..., place]).sum(dim=1).sum(dim=0)
            mass += taught.sum(dim=1).sum(dim=0)
        torch.amax(values.amax(dim=1), dim=0, out=peak)
        torch.sum(values.sub_(peak).exp_().sum(dim=1), dim=0, out=total)
    peak = peaks.amax(dim=0)
    shrink = (peaks - peak).exp_()  # from the peak of a block to that of all
    total = (totals * shrink).sum(dim=0)
    normaliser = peak + total.log()
    share = logits.new_zeros(rows)
    for (target, loss, own, place), likelihood, mass in zip(terms, likelihoods, masses):
        loss[own] = target.weights[own] * (mass * normaliser[place] - likelihood)
        share[place] += target.scale * target.weights[own] * mass
    keep = kept.shape[1]
    for block, to_softmax, to_gradient in zip(blocks, shrink / total, shrink * (share / total)):
        values = logits[block]
        torch.mul(values[:, :keep], to_softmax[:keep], out=kept[block])
        values *= to_gradient
        for (target, _, own, place), other in zip(terms, probs):
            values[:, place].addcmul_(other[block], target.scale * target.weights[own], value=-1)
    return logits
