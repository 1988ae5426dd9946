"""A choice measured again, before it is named: a scorecard may be of another day, and most of it is predicted."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from poa_mm.checkpoint import CheckpointError, file_sha256, load_teacher
from poa_mm.elastic import Subnet

from .latency import Condition, describe_machine, summarise, time_visit
from .measurement import use_threads
from .runtimes import WriteOnnx, check_runtime, make_runtime
from .selection import Row

VISITS = 5  # of each subnet that is timed again


class Verified(NamedTuple):
    """What a subnet was found to cost.

    Args:
        before: The subnet in the scorecard.
        row: The same with the latency and the peak memory of now.
        fits: Whether both are within the limits.
    """

    before: Row
    row: Row
    fits: bool


def find_checkpoint(card: Mapping[str, Any], checkpoint: str | os.PathLike | None = None) -> Path | None:
    """The checkpoint that a scorecard is of, if it is there.

    Args:
        card: The scorecard.
        checkpoint: Where it is. Default: where it was when the scorecard was made.

    Raises:
        CheckpointError: If it is another file than the scorecard was made of, or ``checkpoint`` is given and missing.
    """
    path = Path(checkpoint or card['checkpoint'])
    if not path.exists():
        if checkpoint is not None:
            raise CheckpointError(f'{path}: there is no such file')
        return None
    digest = file_sha256(path)
    if digest != card['checkpoint_sha256']:
        raise CheckpointError(
            f'the scorecard is of another checkpoint: SHA-256 {card["checkpoint_sha256"]}, that of {path} is {digest}'
        )
    return path


def other_machine(card: Mapping[str, Any], condition: str) -> list[str]:
    """What differs between this machine and the one of the scorecard, in words."""
    here = describe_machine([Condition.parse(condition).device])
    return [
        f'{key} was {card["machine"].get(key)}, is {value}'
        for key, value in here.items()
        if value != card['machine'].get(key)
    ]


def verify(
    card: Mapping[str, Any],
    checkpoint: str | os.PathLike,
    ranked: Sequence[Row],
    limits: Mapping[str, float],
    condition: str,
    write_onnx: WriteOnnx | None = None,
) -> Iterator[Verified]:
    """Measure subnets again, from the best on, until one is within the limits.

    Args:
        card: The scorecard.
        checkpoint: That it is of, see :func:`find_checkpoint`.
        ranked: Subnets, the best first.
        limits: In plain units; ``'latency'`` and ``'memory'`` are compared, the others do not change.
        condition: Such as ``'torch-cpu-b1'``.
        write_onnx: Exports a network, for onnxruntime.

    Yields:
        What was found of each; the last one fits, unless none does.

    Raises:
        ValueError: If the runtime or device is not there.
        CheckpointError: If the checkpoint cannot be read.
    """
    name, device, batch = Condition.parse(condition)
    check_runtime(name, device)
    backbone, _ = load_teacher(checkpoint)
    images = torch.randn(batch, backbone.in_channels, *backbone.img_size, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder, use_threads(card['threads']):
        runtime = make_runtime(
            name, device, backbone, folder=Path(folder), write_onnx=write_onnx, threads=card['threads']
        )
        for row in ranked:
            subnet = Subnet.parse(row['subnet'])
            times: list[float] = []
            for _ in range(VISITS):
                with runtime.open(subnet) as load:
                    times += time_visit(load(images))
            cost = dict(
                kind='measured',
                **summarise(times, batch)._asdict(),
                peak_memory=runtime.peak_memory(subnet, images),
            )
            found = {'latency': cost['median_ms'], 'memory': cost['peak_memory']}
            known = {key: value for key, value in found.items() if key in limits}
            fits = all(value is not None and value <= limits[key] for key, value in known.items())
            yield Verified(row, {**row, 'costs': {**row['costs'], condition: cost}}, fits)
            if fits:
                return
