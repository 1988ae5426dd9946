"""Several projection heads, each with its own set of prototypes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from mmengine.model import BaseModule, ModuleList
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from poa_mm.elastic import ElasticLinear

from ..losses import prototype_logits


class Projector(nn.Module):
    """MLP with GELU and an L2-normalised output; its first layer takes any leading part of the inputs.

    Args:
        in_channels: Inputs at full width.
        hidden_channels: Channels between the linear layers.
        out_channels: Outputs.
        num_layers: Linear layers, at least 2.
    """

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int, num_layers: int):
        super().__init__()
        layers: list[nn.Module] = [ElasticLinear(in_channels, hidden_channels, elastic_out=False), nn.GELU()]
        for _ in range(num_layers - 2):
            layers += [nn.Linear(hidden_channels, hidden_channels), nn.GELU()]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden_channels, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """``(N, width)`` to unit vectors ``(N, out_channels)`` in float32."""
        return F.normalize(self.layers(x).float(), dim=-1)


class Prototypes(nn.Module):
    """Weight-normalised linear layer without bias: row k is ``gain_k * weight_k / |weight_k|``.

    Args:
        in_channels: Inputs.
        num_prototypes: Outputs.
    """

    def __init__(self, in_channels: int, num_prototypes: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_prototypes, in_channels))
        self.gain = nn.Parameter(torch.ones(num_prototypes, 1))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def matrix(self) -> Tensor:
        """The prototypes, ``(num_prototypes, in_channels)``; no row of the weight may be zero."""
        # What torch.nn.utils.parametrizations.weight_norm calls: one fused pass, and a fifth of normalize's time.
        return torch._weight_norm(self.weight, self.gain)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in_channels)`` to :func:`prototype_logits` ``(N, num_prototypes)``."""
        return prototype_logits(x, self.matrix())


@MODELS.register_module()
class MultiPrototypeHead(BaseModule):
    """Multiple projection heads, MPH (POA, Sec. 3.4), shared by class and patch features.

    Args:
        in_channels: Channels of the backbone's features at full width; narrower ones are taken too.
        num_prototypes: Prototypes of each head. Default: 8192, 16384, 32768 and 65536.
        hidden_channels: Channels of the hidden layers. Default: 2048.
        bottleneck_channels: Channels of the normalised embedding. Default: 256.
        num_layers: Linear layers before the prototypes. Default: 3.
        init_cfg: mmengine's initialisation config. Default: truncated normal of std 0.02.

    Raises:
        ValueError: If there is no head, or ``num_layers`` is below 2.
    """

    def __init__(
        self,
        in_channels: int,
        num_prototypes: Sequence[int] = (8192, 16384, 32768, 65536),
        hidden_channels: int = 2048,
        bottleneck_channels: int = 256,
        num_layers: int = 3,
        init_cfg: dict | list | None = None,
    ):
        super().__init__(init_cfg or dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0))
        if not num_prototypes or min(num_prototypes) < 2:
            raise ValueError(f'num_prototypes {num_prototypes} must name at least one head of 2 or more')
        if num_layers < 2:
            raise ValueError(f'num_layers {num_layers} is below 2')
        self.in_channels = in_channels
        self.num_prototypes = tuple(num_prototypes)
        self.bottleneck_channels = bottleneck_channels
        self.projectors = ModuleList(
            Projector(in_channels, hidden_channels, bottleneck_channels, num_layers) for _ in num_prototypes
        )
        self.prototypes = ModuleList(Prototypes(bottleneck_channels, number) for number in num_prototypes)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features ``(N, width)`` to logits ``(N, K)``, one tensor for each head."""
        return list(self.iterate(x))

    def iterate(self, x: Tensor) -> Iterator[Tensor]:
        """The same logits, computed head by head as they are asked for."""
        return (prototypes(projector(x)) for projector, prototypes in zip(self.projectors, self.prototypes))

    def embed(self, x: Tensor) -> list[Tensor]:
        """Features ``(N, width)`` to unit vectors ``(N, bottleneck_channels)``, one tensor for each head."""
        return [projector(x) for projector in self.projectors]

    def matrices(self) -> list[Tensor]:
        """The prototypes ``(K, bottleneck_channels)`` of each head, by which embeddings become logits."""
        return [prototypes.matrix() for prototypes in self.prototypes]
