"""The stock Swin transformer that a subnet is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from poa_mm.elastic import Subnet, kept_blocks

ELASTIC_STAGE = 2  # the one whose depth varies


def swin_config(
    subnet: Subnet,
    depths: Sequence[int],
    *,
    head_dim: int,
    img_size: tuple[int, int],
    patch_size: int,
    in_channels: int,
    window_size: int,
    pad_small_map: bool = True,
    unshifted_stages: Sequence[int] = (),
) -> dict[str, Any]:
    """Config of the stock ``mmpretrain.SwinTransformer`` that a subnet is.

    Args:
        subnet: The subnet.
        depths: Blocks of the supernet's stages, as which blocks are kept decides which are shifted.
        head_dim: Channels of an attention head.
        img_size: As of the stock network, which takes images of any size.
        patch_size: As of the stock network, as are the others.
        unshifted_stages: Those of the supernet none of whose blocks is shifted. Default: ().
    """
    config = dict(
        type='SwinTransformer',
        arch=dict(
            embed_dims=subnet.width,
            depths=stage_depths(subnet, depths),
            num_heads=[subnet.width * 2**stage // head_dim for stage in range(len(depths))],
        ),
        img_size=img_size,
        patch_size=patch_size,
        in_channels=in_channels,
        window_size=window_size,
        pad_small_map=pad_small_map,
    )
    stages: list[dict[str, Any]] = []
    for stage, depth in enumerate(depths):
        kept = kept_blocks(subnet.depth if stage == ELASTIC_STAGE else depth, depth)
        shifts = [index % 2 == 1 and stage not in unshifted_stages for index in kept]
        in_turn = shifts == [position % 2 == 1 for position in range(len(shifts))]  # what the stock network does
        stages.append({} if in_turn else dict(block_cfgs=[dict(shift=shift) for shift in shifts]))
    if any(stages):
        config['stage_cfgs'] = stages
    return config


def stage_depths(subnet: Subnet, depths: Sequence[int]) -> list[int]:
    """Blocks of each stage of a subnet, where the supernet has ``depths``."""
    return [subnet.depth if stage == ELASTIC_STAGE else depth for stage, depth in enumerate(depths)]
