"""What POA, extraction and evaluation ask of an elastic backbone, whatever its family."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from poa_mm.elastic import Cost, Subnet, SubnetSpace


class Features(NamedTuple):
    """Normalised features of one forward pass.

    Args:
        cls: Class feature of each image, ``(B, D)``.
        patch: Patch features, ``(B, N, D)``, on the grid of the masks.
    """

    cls: Tensor
    patch: Tensor


class ElasticBackbone(Protocol):
    """The interface behind which all that differs between families is kept.

    Attributes:
        space: All subnets; ``subnet=None`` anywhere means ``space.largest``.
        feature_channels: Channels ``D`` of the class and patch features at full width.
    """

    space: SubnetSpace
    feature_channels: int

    def forward(self, x: Tensor, subnet: Subnet | None = None, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Outputs as mmpretrain's backbones give them (``out_indices``, ``out_type``)."""

    def extract_features(self, x: Tensor, subnet: Subnet | None = None, mask: Tensor | None = None) -> Features:
        """Class and patch features of images ``(B, C, H, W)``; ``mask`` is boolean ``(B, N)``."""

    def mask_grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the patch features, and so of a mask, for images of ``(H, W)``."""

    def extract(self, subnet: Subnet) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Config and state dict of the stock network that equals ``subnet``."""

    def cost(self, subnet: Subnet, image_size: int | tuple[int, int] | None = None) -> Cost:
        """Parameters and FLOPs of ``subnet``."""

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter and the number of depths, for layer-wise learning-rate decay."""
