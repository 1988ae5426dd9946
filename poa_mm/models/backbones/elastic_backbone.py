"""What POA, extraction and evaluation ask of an elastic backbone, whatever its family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from poa_mm.elastic import Cost, Subnet, SubnetSpace


class Features(NamedTuple):
    """Normalised features of one forward pass.

    Args:
        cls: Class feature of each image, ``(B, D)``.
        patch: Patch features, ``(B, N, D)``, on the grid of the subnet's masks.
    """

    cls: Tensor
    patch: Tensor


class BatchPart(NamedTuple):
    """Which samples of a larger batch are there, for what is drawn over all of it (stochastic depth).

    Args:
        places: Those of the samples that are there among all, on the host, ``(B,)``.
        total: Number of all samples.
    """

    places: Tensor
    total: int

    def present(self, chosen: Tensor) -> Tensor:
        """Which of the samples that are there are among the ``chosen`` ones of all, as numbers from 0."""
        return torch.isin(self.places, chosen).nonzero().flatten()


class OnePatchSize:
    """A backbone whose patches have one size, and which says so to whoever asks for more.

    Before ``__init__``, whose arguments are those that can be set.
    """

    def __new__(cls, *args: Any, **options: Any):
        if 'patch_sizes' in options:
            raise TypeError(
                f'{cls.__name__} has patches of one size; patch_sizes={options["patch_sizes"]} is a choice of '
                'ElasticVisionTransformer only'
            )
        return super().__new__(cls)


def map_features(x: Tensor) -> Features:
    """Features of a backbone without class token, from its last feature map ``(B, D, rows, columns)``.

    The class feature is the mean over the map. Its cells, each repeated as 2 x 2, are the patches, so that masks
    are not as coarse as the map.

    Returns:
        Class features ``(B, D)`` and patch features ``(B, 2 * rows * 2 * columns, D)``.
    """
    cells = F.interpolate(x, scale_factor=2, mode='nearest')  # (B, D, 2 * rows, 2 * columns)
    return Features(cls=x.mean(dim=(2, 3)), patch=cells.flatten(2).transpose(1, 2))


def run_block(block: nn.Module, *inputs: Any, with_cp: bool) -> Tensor:
    """What ``block`` makes of ``inputs``.

    With ``with_cp``, 50 images of the ViT-L recipe take an estimated 14 GiB instead of 29
    (``benchmarks/bench_memory.py``), and a ViT's step on the CPU 1.23 times as long.

    Args:
        block: A block of a backbone.
        *inputs: Of its forward.
        with_cp: Where a gradient will be asked for, keep the inputs only, and compute the block again in the backward
            pass (activation checkpointing), with the same random numbers.
    """
    if with_cp and torch.is_grad_enabled():
        # The reentrant kind refuses torch.autograd.grad, which EarlyBackward needs.
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)


class ElasticBackbone(Protocol):
    """The interface behind which all that differs between families is kept.

    Attributes:
        space: All subnets; ``subnet=None`` anywhere means ``space.largest``.
        feature_channels: Channels ``D`` of the class and patch features at full width.
        img_size: Height and width in pixels that the network is made for.
        in_channels: Channels of the images.
        stem_modules: Names of the modules that turn pixels into tokens, for their learning rate.
        block: Class of the blocks that depth is counted in, the parts in which a network is sharded.
        neck: Config of the mmpretrain neck that makes class features of what the extracted network gives, or
            None if it gives them itself.
        elastic_options: Names of attributes that change what smaller subnets compute, and show neither in the
            weights nor in the config of the extracted largest one.
        training_options: Keys of that config which change training only, not what a trained network computes.
    """

    space: SubnetSpace
    feature_channels: int
    img_size: tuple[int, int]
    in_channels: int
    stem_modules: tuple[str, ...]
    block: type[nn.Module]
    neck: Mapping[str, Any] | None
    elastic_options: tuple[str, ...]
    training_options: tuple[str, ...]

    def forward(self, x: Tensor, subnet: Subnet | None = None, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Outputs as mmpretrain's backbones give them (``out_indices``, ``out_type``)."""

    def extract_features(
        self, x: Tensor, subnet: Subnet | None = None, mask: Tensor | None = None, part: BatchPart | None = None
    ) -> Features:
        """Class and patch features of images ``(B, C, H, W)``; ``mask`` is boolean ``(B, N)``.

        Images that are a ``part`` of a larger batch take part in what is drawn over all of it.
        """

    def mask_grid(self, image_size: tuple[int, int], subnet: Subnet | None = None) -> tuple[int, int]:
        """Rows and columns of the patch features of ``subnet``, and so of its mask, for images of ``(H, W)``."""

    def channels_of(self, subnet: Subnet) -> int:
        """Channels of the class and patch features of ``subnet``."""

    def extract(self, subnet: Subnet) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Config and state dict of the plain network that equals ``subnet``."""

    @staticmethod
    def plain_features(network: nn.Module, x: Tensor) -> Features:
        """Class and patch features of images ``(B, C, H, W)`` by an extracted network, built from its config."""

    @staticmethod
    def subnet_of(network: nn.Module) -> Subnet:
        """The subnet that an extracted network is."""

    def cost(self, subnet: Subnet, image_size: int | tuple[int, int] | None = None) -> Cost:
        """Parameters and FLOPs of ``subnet``."""

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter and the number of depths, for layer-wise learning-rate decay."""
