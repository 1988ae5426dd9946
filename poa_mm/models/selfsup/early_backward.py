"""Backward passes that are not put off."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.multiprocessing.reductions import StorageWeakRef


class EarlyBackward:
    """Computes the gradients of several losses one by one, so that each graph can be freed, and hands over their sum.

    What :attr:`total` returns has the value of the sum and, as far as ``params`` are concerned, its gradient: it is
    added to other losses, scaled and differentiated like any other, once. All of ``params`` count as used, so that
    distributed training reduces each of them once, after everything.

    One set of gradients is kept, however many losses there are.

    Args:
        params: Where gradients end: leaves, or results that several losses share. Those without ``requires_grad`` are
            passed over; nothing but these gets a gradient.
        loss_scale: Factor during the computation, for the small gradients of float16. Default: 1.
    """

    def __init__(self, params: Iterable[Tensor], loss_scale: Tensor | float = 1.0):
        self._params = [param for param in params if param.requires_grad]
        self._loss_scale = loss_scale
        self._grads: list[Tensor | None] | None = None
        self._value: Tensor | float = 0.0

    def add(self, loss: Tensor) -> None:
        """Compute the gradient of ``loss``, a scalar, now."""
        self._value = self._value + loss.detach()
        if not loss.requires_grad:
            return
        with torch.autocast(loss.device.type, enabled=False):  # as a backward pass should be
            if self._grads is None:
                self._grads = _apart(torch.autograd.grad(loss * self._loss_scale, self._params, allow_unused=True))
            else:
                self._add_up(loss * self._loss_scale)
        torch.clear_autocast_cache()  # its casts of the weights belong to the graph that is gone

    def _add_up(self, loss: Tensor) -> None:
        """Add the gradient of ``loss`` to that of earlier losses, one parameter after the other as it is computed.

        So there is no second set of gradients at any time.
        """
        hooks = [param.register_hook(partial(self._take, index)) for index, param in enumerate(self._params)]
        try:
            torch.autograd.grad(loss, self._params, allow_unused=True)
        finally:
            for hook in hooks:
                hook.remove()

    def _take(self, index: int, grad: Tensor) -> Tensor:
        """Keep a gradient; autograd goes on with zeros, which take no memory."""
        before = self._grads[index]
        self._grads[index] = grad.clone() if before is None else before.add_(grad)
        return grad.new_zeros(()).expand_as(grad)

    def total(self) -> Tensor | float:
        """The sum of all losses so far, which hands over their gradient; to be taken once."""
        if self._grads is None:
            return self._value
        grads, self._grads = self._grads, None
        return hand_over(self._value, self._params, grads, self._loss_scale)


def hand_over(
    loss: Tensor, params: Sequence[Tensor], grads: Sequence[Tensor | None], loss_scale: Tensor | float = 1.0
) -> Tensor:
    """The value of ``loss`` with a gradient that is known already.

    Args:
        loss: A scalar.
        params: What it depends on: leaves or results.
        grads: ``loss_scale`` times its gradient with respect to each of them, None for 0. The backward pass consumes
            them.
        loss_scale: Default: 1.
    """
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


def _apart(grads: Sequence[Tensor | None]) -> list[Tensor | None]:
    """``grads`` for changing in place: autograd may return one tensor for two parameters, or a part of the other's."""
    seen: set[StorageWeakRef] = set()
    apart = []
    for grad in grads:
        if grad is not None:
            storage = StorageWeakRef(grad.untyped_storage())
            if storage in seen:
                grad = grad.clone()
            seen.add(storage)
        apart.append(grad)
    return apart
