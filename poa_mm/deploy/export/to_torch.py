"""Programs of ``torch.export``: one ``.pt2`` file that torch alone loads and runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from .network import RESNET, ExportError, ExportNetwork
from .options import ExportOptions
from .traceable import traceable

MODULES = ()
TORCH = '2.6'
MAX_BATCH = 4096
MAX_CELLS = 512  # rows and columns of the feature map
METADATA = 'poa_mm.json'  # in the file, beside the program


def check(network: ExportNetwork, options: ExportOptions) -> None:
    """Check that the image size can be as free as asked for.

    Raises:
        ExportError: If the size of the pre-training is none of those that would be free.
    """
    for size, step in zip(network.image_size, network.stride):
        if network.kind != RESNET and size % step:
            raise ExportError(
                f'subnet {network.subnet}: onnx and torch take images of whole cells of {step} pixels, and those of '
                f'the pre-training have {size}; what works: timm'
            )
        if options.dynamic_size and (size % step or size < 2 * step):
            raise ExportError(
                f'subnet {network.subnet}: images of any size come in steps of {step} pixels, from {2 * step} up, and '
                f'those of the pre-training have {size}; what works: without dynamic size'
            )


def example_size(network: ExportNetwork, options: ExportOptions) -> tuple[int, int]:
    """Height and width of another image to try than that of the pre-training."""
    if not options.dynamic_size:
        return network.image_size
    return tuple((size // step + extra) * step for size, step, extra in zip(network.image_size, network.stride, (1, 3)))


def program(network: ExportNetwork, options: ExportOptions) -> torch.export.ExportedProgram:
    """The network as a program, traced once: ``images`` to ``features`` and ``feature_map``."""
    if options.dynamic_size not in network.programs:
        network.programs[options.dynamic_size] = _trace(network, options)
    return network.programs[options.dynamic_size]


@torch.no_grad()
def _trace(network: ExportNetwork, options: ExportOptions) -> torch.export.ExportedProgram:
    dim = torch.export.Dim
    shape: dict[int, Any] = {0: dim('batch', min=1, max=MAX_BATCH)}
    if options.dynamic_size:
        names = zip((2, 3), ('rows', 'columns'), network.stride)
        shape |= {axis: step * dim(name, min=2, max=MAX_CELLS) for axis, name, step in names}
    images = torch.zeros(2, network.in_channels, *example_size(network, options))
    module = traceable(network, options.dynamic_size)
    return torch.export.export(module, (images,), dynamic_shapes={'images': shape}, strict=False)


def write(network: ExportNetwork, folder: Path, options: ExportOptions) -> dict[str, Any]:
    """Write ``poa_<subnet>.pt2``.

    Returns:
        Of the manifest: ``file``, ``load`` (the call that loads it) and ``dynamic_size``.
    """
    target = folder / f'{network.name}.pt2'
    metadata = {METADATA: json.dumps(dict(subnet=str(network.subnet), **network.description()))}
    torch.export.save(program(network, options), target, extra_files=metadata)
    return dict(
        file=target.name,
        load=f"torch.export.load('{target.name}').module()",
        dynamic_size=_free_sizes(network) if options.dynamic_size else None,
    )


def _free_sizes(network: ExportNetwork) -> dict[str, Any]:
    step = list(network.stride)
    return dict(step=step, smallest=[2 * size for size in step], largest=[MAX_CELLS * size for size in step])
