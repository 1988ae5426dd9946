"""From teacher logits to targets that cannot collapse onto a few prototypes."""

from __future__ import annotations

import torch
from mmengine.dist import all_reduce
from mmengine.registry import MODELS
from torch import Tensor, nn

from .logits import in_parts


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
        all_reduce(total)
        mean = (total[:-1] / total[-1].clamp(min=1)).unsqueeze(0)
        # The centre stays where nobody has a sample; the host need not know whether that is so.
        self.centre.lerp_(mean, (1 - self.momentum) * (total[-1] > 0).to(mean))
        return targets
