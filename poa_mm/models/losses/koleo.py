"""KoLeo regulariser."""

from __future__ import annotations

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-8  # keeps norms, distances and logarithms finite


@MODELS.register_module()
class KoLeoLoss(nn.Module):
    """Spreads features: ``-mean_i log min_j |x_i - x_j|`` (Sablayrolles et al. 2019, Eq. 3)."""

    def forward(self, features: Tensor) -> Tensor:
        """Loss in float32 of the features ``(B, D)`` of one view; zero for a single image.

        Features are L2-normalised first. Neighbours are sought among the images of this rank.
        """
        if len(features) < 2:
            return features.float().sum() * 0
        with torch.autocast(features.device.type, enabled=False):
            x = F.normalize(features.float(), dim=-1, eps=EPS)
            with torch.no_grad():
                similarity = x @ x.T
                nearest = similarity.fill_diagonal_(-2).argmax(dim=1)  # -2: below every cosine, rounding included
            distance = F.pairwise_distance(x, x[nearest], eps=EPS)
            return -torch.log(distance + EPS).mean()
