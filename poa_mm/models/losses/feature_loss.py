"""Features of a student against those of a teacher, token by token."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def feature_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean of ``1 - cos`` between two tokens, which is 0 to 2.

    Args:
        found: Of the student, ``(..., D)``.
        wanted: Of the teacher, likewise; no gradient reaches it.

    Returns:
        A scalar, computed in float32.
    """
    return (1 - F.cosine_similarity(found.float(), wanted.detach().float(), dim=-1)).mean()
