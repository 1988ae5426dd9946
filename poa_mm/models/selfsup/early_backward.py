"""Backward passes that are not put off."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def early_backward(loss: Tensor, params: Iterable[Tensor], loss_scale: Tensor | float = 1.0) -> Tensor:
    """Compute the gradient of ``loss`` now, so that its graph can be freed, and hand it over in the backward pass.

    What comes back has the value of ``loss`` and, as far as ``params`` are concerned, its gradient: it is added to
    other losses, scaled and differentiated like any other, once. All of ``params`` count as used, so that distributed
    training reduces each of them once, after everything.

    Args:
        loss: A scalar.
        params: Where its gradient ends: leaves, or results that other losses share. Those without ``requires_grad`` are
            passed over; nothing but these gets a gradient.
        loss_scale: Factor during the computation, for the small gradients of float16. Default: 1.
    """
    if not loss.requires_grad:
        return loss
    params = [param for param in params if param.requires_grad]
    with torch.autocast(loss.device.type, enabled=False):  # as a backward pass should be
        grads = torch.autograd.grad(loss * loss_scale, params, allow_unused=True)
    torch.clear_autocast_cache()  # its casts of the weights belong to the graph that is gone
    return _Handover.apply(loss.detach(), list(grads), loss_scale, *params)


class _Handover(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss, grads, loss_scale, *params):
        ctx.grads, ctx.loss_scale = grads, loss_scale
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        grads, ctx.grads = ctx.grads, None
        factor = upstream / ctx.loss_scale
        return None, None, None, *(None if grad is None else grad.mul_(factor) for grad in grads)
