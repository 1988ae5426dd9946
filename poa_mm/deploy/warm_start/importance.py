"""How much each unit of a supernet matters, at full size."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from poa_mm.models.backbones.elastic_backbone import ElasticBackbone, Features

from .axes import Axis, split


@torch.no_grad()
def magnitude(backbone: nn.Module, axes: list[Axis]) -> dict[str, Tensor]:
    """Sum of squares of all weights of a unit, by the name of the axis, ``(units,)`` each."""
    params = dict(backbone.named_parameters())
    return {
        axis.name: sum(split(params[part.name], part, axis.units).double().square().sum(dim=1) for part in axis.parts)
        for axis in axes
    }


def taylor(backbone: ElasticBackbone, axes: list[Axis], images: Iterable[Tensor]) -> dict[str, Tensor]:
    """How much the features of images change without a unit, to first order; by the name of the axis, ``(units,)``.

    Let ``g`` multiply what a unit gives to the rest of the network. Without it (``g = 0``), the features ``f`` of an
    image change by about ``df/dg``, and their squared error by ``|df/dg|^2``: the loss of reconstructing the features,
    with ``f`` to first order. The loss by itself has no slope at the whole network, where it is smallest. The squared
    norm is that of ``d(v.f)/dg`` in the mean over random directions ``v``, one for each image, so that one backward
    pass of each image is enough.

    Args:
        backbone: In evaluation mode.
        axes: Of it.
        images: Prepared as for training, ``(1, C, H, W)`` each.
    """
    params = dict(backbone.named_parameters())
    names = sorted({part.name for axis in axes for part in axis.parts if part.gives})
    generator = torch.Generator().manual_seed(0)
    total = {axis.name: torch.zeros(axis.units, dtype=torch.float64) for axis in axes}
    for image in images:
        value = _projected(backbone.extract_features(image), generator)
        grads = dict(zip(names, torch.autograd.grad(value, [params[name] for name in names], allow_unused=True)))
        for axis in axes:
            slope = torch.zeros(axis.units, dtype=torch.float64)
            for part in axis.parts:
                if part.gives and grads[part.name] is not None:
                    product = split(params[part.name].detach() * grads[part.name], part, axis.units)
                    slope += product.sum(dim=1).double().cpu()
            total[axis.name] += slope.square()
    return total


def _projected(features: Features, generator: torch.Generator) -> Tensor:
    """The normalised class and patch features of one image along a random direction."""
    total = 0.0
    for rows in (features.cls, features.patch.flatten(0, 1)):
        direction = torch.randn(rows.shape, generator=generator).to(rows)
        total = total + (F.normalize(rows, dim=-1) * direction).sum() / len(rows) ** 0.5
    return total
