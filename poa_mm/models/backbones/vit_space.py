"""Sizes of an elastic vision transformer: those of the whole network and of all its subnets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from poa_mm.elastic import Subnet, SubnetSpace

ElasticVisionTransformer = Any  # which imports this module


def vit_arch(arch: str | Mapping[str, int], zoo: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Sizes of the whole network.

    Args:
        arch: A name of ``zoo``, or the sizes.
        zoo: Sizes by name.

    Raises:
        ValueError: If the name is unknown, or sizes are missing.
    """
    if isinstance(arch, str):
        if arch.lower() not in zoo:
            raise ValueError(f'arch {arch!r} is not one of {", ".join(zoo)}')
        return dict(zoo[arch.lower()])
    needed = {'embed_dims', 'num_layers', 'num_heads', 'feedforward_channels'}
    if set(arch) != needed:
        raise ValueError(f'arch {dict(arch)} needs exactly the keys {sorted(needed)}')
    return dict(arch)


def vit_space(
    network: ElasticVisionTransformer,
    widths: Iterable[int] | None,
    depths: Iterable[int] | None,
    aliases: Mapping[str, str] | None,
    patch_sizes: Iterable[int] | None,
) -> SubnetSpace:
    """The space of a network that has its sizes already; arguments as of ``ElasticVisionTransformer``.

    Raises:
        ValueError: If widths, depths or patch sizes are not valid for it.
    """
    heads = network.embed_dims // network.head_dim
    if widths is None:
        widths = [network.head_dim * n for n in range(min(6, heads), heads + 1)]
    if depths is None:
        depths = range((network.num_layers + 1) // 2, network.num_layers + 1)
    space = SubnetSpace(widths, depths, **_patches(network, patch_sizes))
    if space.largest != Subnet(network.embed_dims, network.num_layers):
        raise ValueError(
            f'the largest of {space.describe()} must be the whole network, {network.embed_dims}x{network.num_layers}'
        )
    for width in space.widths:
        if width % network.head_dim or network.hidden_dims * width % network.embed_dims:
            raise ValueError(f'width {width} does not divide into heads of {network.head_dim} channels')
    if aliases is None:
        aliases = {name: subnet for name, subnet in network.STANDARD_SUBNETS.items() if subnet in space}
    for name, subnet in aliases.items():
        space.aliases[name] = space.parse(subnet)
    return space


def _patches(network: ElasticVisionTransformer, patch_sizes: Iterable[int] | None) -> dict[str, Any]:
    rows, columns = network.patch_size
    native = rows if rows == columns else None
    if patch_sizes is None:
        return dict(native=native)
    sizes = [patch_sizes] if isinstance(patch_sizes, int) else list(patch_sizes)
    if native is None:
        raise ValueError(f'patch_sizes {sizes} need a square patch_size; it is {network.patch_size}')
    for size in sizes:
        check_whole_patches(network.img_size, size, 'img_size')
    return dict(patches=sizes, native=native)


def check_whole_patches(image_size: tuple[int, int], patch: int, what: str = 'images') -> None:
    """Check that images divide into patches.

    Patches of other sizes than the native one are never padded: what a patch covers, and what of it is masked, has to
    be known to the pixel.

    Raises:
        ValueError: If they do not; names both.
    """
    if isinstance(patch, int) and patch > 0 and any(size % patch for size in image_size):
        height, width = image_size
        raise ValueError(
            f'{what} of {height} x {width} pixels and patches of {patch} x {patch} do not fit: with patch_sizes, '
            'height and width have to be multiples of every patch size'
        )
