"""Cross-entropies between targets over prototypes and student logits, in their plain form.

What :func:`prototype_loss` computes in training, and is tested against. All of them work in float32 whatever the
autocast, take one head at a time and return scalars.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class CropLosses(NamedTuple):
    """A loss on class tokens, by the kind of student view.

    Args:
        on_global: Part of the global crops, a scalar.
        on_local: Part of the local crops, a scalar; zero where there are none.
    """

    on_global: Tensor
    on_local: Tensor


def _cross_entropy(targets: Tensor, log_probs: Tensor) -> Tensor:
    """``-sum_k targets * log_probs`` for each row, ``(N,)``."""
    return -(targets * log_probs).sum(dim=-1)


def _log_probs(logits: Tensor, temperature: float) -> Tensor:
    return torch.log_softmax(logits.float() / temperature, dim=-1)


def class_loss(targets: Tensor, logits: Tensor, temperature: float = 0.1) -> CropLosses:
    """Cross-view class loss (POA, Eq. 2 and 3).

    Global crop A learns from the teacher's B and B from A; every local crop learns from both. The mean
    over the batch, summed over the pairs of views and divided by their number, ``2 + 2 * L``.

    Args:
        targets: Teacher targets of the two global crops, crop-major ``(2B, K)``.
        logits: Student logits of two global and ``L`` local crops, crop-major ``((2 + L) * B, K)``.
        temperature: Of the student. Default: 0.1.
    """
    targets = targets.unflatten(0, (2, -1))  # (2, B, K)
    log_probs = _log_probs(logits, temperature).unflatten(0, (-1, targets.shape[1]))  # (2 + L, B, K)
    pairs = 2 + 2 * (len(log_probs) - 2)
    on_global = _cross_entropy(targets.flip(0), log_probs[:2]).mean(dim=1).sum()
    on_local = _cross_entropy(targets.sum(dim=0), log_probs[2:]).mean(dim=1).sum()
    return CropLosses(on_global / pairs, on_local / pairs)


def same_view_loss(teacher_logits: Tensor, logits: Tensor, num_global: int, temperature: float = 0.1) -> CropLosses:
    """Same-view distillation of the elastic student from the intact one, L_ES2 (POA, Eq. 4).

    The target is ``softmax(teacher_logits / temperature)``, detached and not centred. A mean over the
    global and one over the local class tokens; the loss is their sum.

    Args:
        teacher_logits: Logits of the intact student, ``(N, K)``.
        logits: Logits of the elastic student for the same views, ``(N, K)``.
        num_global: How many of the leading rows are global crops.
        temperature: Of both. Default: 0.1.
    """
    targets = torch.softmax(teacher_logits.detach().float() / temperature, dim=-1)
    losses = _cross_entropy(targets, _log_probs(logits, temperature))
    on_local = losses[num_global:]
    return CropLosses(losses[:num_global].mean(), on_local.mean() if len(on_local) else losses.new_zeros(()))


def patch_loss(targets: Tensor, logits: Tensor, weights: Tensor, num_images: int, temperature: float = 0.1) -> Tensor:
    """Masked patch loss (iBOT, Sec. 3.2): every masked image counts the same.

    Args:
        targets: Teacher targets of the masked patches, ``(M, K)``.
        logits: Student logits of the same patches, ``(M, K)``.
        weights: One over the number of masked patches of the patch's image, ``(M,)``.
        num_images: Global crops in the batch, unmasked ones included.
        temperature: Of the student. Default: 0.1.
    """
    return (_cross_entropy(targets, _log_probs(logits, temperature)) * weights).sum() / num_images
