"""From teacher logits to targets that cannot collapse onto a few prototypes.

Both kinds of centring are ``softmax(logits / temperature + shift)``, with one number a prototype for all samples of all
ranks. So embeddings and ``shift`` stand for targets that would not fit into memory (:func:`centred`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from mmengine.dist import all_reduce
from mmengine.registry import MODELS
from torch import Tensor, nn

from .logits import float32_products, in_parts, padded, prototype_logits

CHUNK = 2**26  # logits that exist at once: 256 MiB


@MODELS.register_module()
class SinkhornKnopp(nn.Module):
    """Sinkhorn-Knopp centring over the global batch.

    Alternately scales ``exp(logits / temperature)`` so that every prototype gets an equal share of all
    samples of all ranks and every sample's target sums to one (SwAV, Sec. 3.1; used by POA, Sec. 3.3).

    Args:
        iterations: Rounds of scaling. Default: 3.
        num_prototypes: Not used; for the same interface as :class:`MeanCentering`.
    """

    def __init__(self, iterations: int = 3, num_prototypes: int | None = None):
        super().__init__()
        if iterations < 1:
            raise ValueError(f'iterations {iterations} is below 1')
        self.iterations = iterations

    @torch.no_grad()
    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """Targets ``(N, K)`` in float32, rows summing to one, of teacher logits ``(N, K)``.

        ``N`` may be zero on some ranks: they still take part in the exchange.
        """
        with torch.autocast(logits.device.type, enabled=False):  # it would take shares and factors to half precision
            return self._balanced(logits.float() / temperature)

    def _balanced(self, logits: Tensor) -> Tensor:
        # A product of a matrix and a vector keeps one thread busy, a batch of them, one for each part, keeps all.
        parts = in_parts(logits.T)  # (P, K / P, N)
        # exp() is taken relative to each sample's peak, so that none underflows as a whole. What a sample
        # weighs against the others matters to the first share only: the scaling of its row cancels it.
        peak = parts.amax(dim=1).amax(dim=0)
        highest = peak.max() if len(peak) else logits.new_full((), -torch.inf)
        all_reduce(highest, op='max')
        q = parts.sub_(peak).exp_()
        # Only the factors of rows and columns change from round to round; the matrix itself is scaled once, at the end.
        rows = torch.exp(peak - highest)  # (N,)
        for _ in range(self.iterations):
            share = (rows.expand(len(q), 1, -1) @ q.mT).flatten()
            all_reduce(share)
            share /= share.mean()  # the factors know no scale: what one of them gains, the other loses
            columns = 1 / share.clamp_(min=1e-30)  # every prototype: the same share of the global batch
            rows = 1 / (columns.view(len(q), 1, -1) @ q).sum(dim=(0, 1))  # every sample: one
        return q.mul_(rows).flatten(0, 1).mul_(columns.unsqueeze(1)).T

    @torch.no_grad()
    def shift(self, embeddings: Tensor, prototypes: Tensor, temperature: float, stale: Tensor | None = None) -> Tensor:
        """Logarithms ``(K,)`` of the factors that balance the prototypes, for :func:`centred`.

        The targets are those of :meth:`forward` to rounding. Some ``CHUNK`` logits exist at once: if there are
        more, they are computed anew in each round.

        Args:
            embeddings: Of the teacher, ``(N, C)``; ``N`` may be zero.
            prototypes: ``(K, C)``.
            temperature: Of the teacher.
            stale: Embeddings of earlier batches, ``(Q, C)``, which take their shares of the prototypes, too; rows of
                zeros do not count. Default: none.
        """
        rows = embeddings if stale is None else torch.cat([embeddings, stale])
        with torch.autocast(rows.device.type, enabled=False):
            chunks = _Chunks(rows, prototypes, temperature)
            # The first share is relative to the highest logit so far, and in the end to that of all ranks.
            highest = rows.new_full((), torch.finfo(torch.float32).min, dtype=torch.float32)
            share = highest.new_zeros(len(prototypes))
            for q, peak in chunks:
                top = torch.maximum(highest, peak.max())
                share = share * torch.exp(highest - top) + _product(q, torch.exp(peak - top))
                highest = top
            local = highest.clone()
            all_reduce(highest, op='max')
            share = _balanced_share(share * torch.exp(local - highest))
            for _ in range(self.iterations - 1):
                columns = (1 / share).view(chunks.parts, 1, -1)
                share = torch.zeros_like(share)
                for q, peak in chunks:
                    share += _product(q, peak.isfinite() / (columns @ q).sum(dim=(0, 1)))
                share = _balanced_share(share)
            return -share.log()


class _Chunks:
    """``exp(logits / temperature - peak)`` ``(P, K / P, n)`` and ``peak`` ``(n,)`` of some rows at a time.

    The peak of a row of zeros is minus infinity. Goes over the rows as often as it is iterated over; computed once if
    all of them are one chunk.
    """

    def __init__(self, rows: Tensor, prototypes: Tensor, temperature: float):
        self._rows, self._prototypes, self._temperature = rows, prototypes, temperature
        self.parts = len(in_parts(prototypes))
        self._step = max(CHUNK // len(prototypes), 1)
        self._only = [self._chunk(0)] if 0 < len(rows) <= self._step else None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self._only) if self._only else map(self._chunk, range(0, len(self._rows), self._step))

    def _chunk(self, start: int) -> tuple[Tensor, Tensor]:
        rows = self._rows[start : start + self._step]
        parts = in_parts(prototype_logits(rows, self._prototypes).T / self._temperature)
        peak = parts.amax(dim=1).amax(dim=0)
        return parts.sub_(peak).exp_(), peak.masked_fill(~rows.any(dim=1), -torch.inf)


def _product(q: Tensor, rows: Tensor) -> Tensor:
    """``(P, K / P, n)`` and ``(n,)`` to ``(K,)``."""
    return (rows.expand(len(q), 1, -1) @ q.mT).flatten()


def _balanced_share(share: Tensor) -> Tensor:
    """Share of each prototype in all ranks' samples, ``(K,)``, relative to their mean."""
    all_reduce(share)
    return share.div_(share.mean().clamp(min=1e-30)).clamp_(min=1e-30)


@torch.no_grad()
def centred(embeddings: Tensor, prototypes: Tensor, shift: Tensor, temperature: float) -> Tensor:
    """Targets ``softmax(logits / temperature + shift)``, ``(N, K)`` in float32, laid out by prototype.

    Args:
        embeddings: Of the teacher, ``(N, C)``.
        prototypes: ``(K, C)``.
        shift: Of the centring, ``(K,)``.
        temperature: Of the teacher.
    """
    with float32_products(embeddings.device):
        scaled = padded(embeddings.float() / temperature)
        logits = torch.addmm(shift.unsqueeze(1), prototypes.float(), scaled.T)  # (K, N)
        parts = in_parts(logits)
        parts.sub_(parts.amax(dim=1).amax(dim=0)).exp_()
        parts.mul_(1 / parts.sum(dim=1).sum(dim=0))
    return logits.T[: len(embeddings)]


@MODELS.register_module()
class MeanCentering(nn.Module):
    """Plain centring: ``softmax((logits - centre) / temperature)`` with a running mean as the centre.

    The centre is an exponential moving average of the mean logits of the global batch (DINO, Sec. 3.1).

    Args:
        num_prototypes: Prototypes of the head.
        momentum: Of the moving average. Default: 0.9.
    """

    centre: Tensor

    def __init__(self, num_prototypes: int, momentum: float = 0.9):
        super().__init__()
        self.momentum = momentum
        self.register_buffer('centre', torch.zeros(1, num_prototypes))

    @torch.no_grad()
    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """Targets ``(N, K)`` in float32 of teacher logits ``(N, K)``; then moves the centre."""
        logits = logits.float()
        targets = torch.softmax(((logits - self.centre) / temperature).T, dim=0).T  # laid out by prototype
        total = torch.cat([logits.sum(dim=0), logits.new_full((1,), len(logits))])
        self._follow(total)
        return targets

    @torch.no_grad()
    def shift(self, embeddings: Tensor, prototypes: Tensor, temperature: float, stale: Tensor | None = None) -> Tensor:
        """``-centre / temperature`` ``(K,)``, for :func:`centred`; then moves the centre, as :meth:`forward` does.

        Args:
            embeddings: Of the teacher, ``(N, C)``; ``N`` may be zero.
            prototypes: ``(K, C)``.
            temperature: Of the teacher.
            stale: Not used: the centre remembers earlier batches by itself.
        """
        shift = -self.centre[0] / temperature
        with float32_products(embeddings.device):
            total = prototypes.float() @ embeddings.float().sum(dim=0)
        self._follow(torch.cat([total, total.new_full((1,), len(embeddings))]))
        return shift

    def _follow(self, total: Tensor) -> None:
        """Move the centre towards the mean logits, whose sum over the rank's samples and number are ``(K + 1,)``."""
        all_reduce(total)
        mean = (total[:-1] / total[-1].clamp(min=1)).unsqueeze(0)
        # The centre stays where nobody has a sample; the host need not know whether that is so.
        self.centre.lerp_(mean, (1 - self.momentum) * (total[-1] > 0).to(mean))
