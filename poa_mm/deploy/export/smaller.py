"""ONNX files in half precision and 8 bits, accepted by what they score and not by rounding alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.registry import DefaultScope
from torch import Tensor, nn
from torch.utils.data import Subset, default_collate

from poa_mm.datasets.listing import list_images
from poa_mm.elastic import Subnet, SubnetSpace
from poa_mm.evaluation import evaluate_knn
from poa_mm.evaluation.data import EvaluationData, open_data
from poa_mm.models.backbones import Features

from .network import ExportError, ExportNetwork, normalisation
from .options import ExportOptions
from .to_onnx import INPUT, OUTPUTS, to_half, to_int8
from .verify import load_batch

CALIBRATION_IMAGES = 128
BATCH = 8


class OnnxBackbone(nn.Module):
    """An ONNX file behind the interface that k-NN asks of a backbone: its space is one subnet.

    Args:
        path: The file.
        network: What it was exported from.
    """

    def __init__(self, path: Path, network: ExportNetwork):
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
        self.swapped = network.swapped
        self.space = SubnetSpace.of(network.subnet)
        self.device = nn.Parameter(torch.zeros(()), requires_grad=False)  # which says that inputs go to the CPU

    def extract_features(self, x: Tensor, subnet: Subnet | None = None) -> Features:
        """Features of images ``(B, C, H, W)`` in the order of channels of the pre-training."""
        x = x.flip(1) if self.swapped else x
        found = self.session.run(list(OUTPUTS), {INPUT: x.contiguous().numpy()})
        features, feature_map = map(torch.from_numpy, found)
        return Features(features, feature_map.flatten(2).transpose(1, 2))


def write_smaller(
    network: ExportNetwork, folder: Path, options: ExportOptions, progress: Callable[[str], None]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Write ``poa_<subnet>_fp16.onnx`` and ``poa_<subnet>_int8.onnx`` beside ``poa_<subnet>.onnx``.

    Yields:
        ``'fp16'`` or ``'int8'``, and of the manifest: ``file``, ``load``, ``knn`` (accuracy ``before`` and ``after``,
        ``tolerance``), ``max_abs_diff`` (from the file in float32, on normal random images), and of int8
        ``calibration``.

    Raises:
        ExportError: If the config normalises images in another way than pre-training did or they are of another size
            than the file takes, there is nothing to calibrate on, or the score falls by more than
            ``options.allowed_loss``.
        ValueError: If the config's images cannot be scored.
    """
    source = folder / f'{network.name}.onnx'
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        _check_normalisation(network, options.config)
        data = open_data(options.config)
        _check_size(network, options, data)
        before = _score(source, network, options, data)
        progress(f'{network.subnet}: k-NN accuracy {before:.4f} in float32')
        for kind in ('fp16', 'int8'):
            if not getattr(options, kind):
                continue
            progress(f'{network.subnet}: writing onnx in {kind}')
            target = folder / f'{network.name}_{kind}.onnx'
            details: dict[str, Any] = dict(file=target.name, load=f"onnxruntime.InferenceSession('{target.name}')")
            if kind == 'fp16':
                to_half(source, target)
            else:
                batches = list(_calibration(network, options, data))
                to_int8(source, target, batches)
                details['calibration'] = dict(
                    images=sum(map(len, batches)),
                    of='the bank of the k-NN' if options.images is None else os.path.abspath(options.images),
                )
            after = _score(target, network, options, data)
            progress(f'{network.subnet}: k-NN accuracy {after:.4f} in {kind}')
            if after < before - options.allowed_loss:
                raise ExportError(
                    f'onnx of subnet {network.subnet} in {kind} scores {after:.4f} by k-NN, in float32 {before:.4f}: '
                    f'a loss of more than {options.allowed_loss}; nothing was written'
                )
            details['knn'] = dict(before=before, after=after, tolerance=options.allowed_loss)
            details['max_abs_diff'] = _difference(source, target, network)
            yield kind, details


def _check_normalisation(network: ExportNetwork, config: Mapping[str, Any]) -> None:
    """Check that the config prepares images as the checkpoint says that pre-training did."""
    preprocessor = (config.get('model') or {}).get('data_preprocessor') or config.get('data_preprocessor') or {}
    names = ('channels swapped to RGB', 'mean', 'std')
    ours = (network.swapped, network.mean, network.std)
    theirs = normalisation(preprocessor, network.in_channels)
    for name, mine, other in zip(names, ours, theirs):
        if not np.allclose(mine, other):
            raise ExportError(
                f'the config normalises images in another way than the pre-training did: {name} {other}, in the '
                f'checkpoint {mine} (of values in [0, 1])'
            )


def _check_size(network: ExportNetwork, options: ExportOptions, data: EvaluationData) -> None:
    """Check that the images to score are of the size that the file takes."""
    size = tuple(data.query.dataset[0]['inputs'].shape[-2:])
    if not options.dynamic_size and size != tuple(network.image_size):
        raise ExportError(
            f"the images of the config's entry 'knn' are {size[0]} x {size[1]} pixels, the file takes "
            f'{network.image_size[0]} x {network.image_size[1]}; dynamic_size takes others'
        )


def _score(path: Path, network: ExportNetwork, options: ExportOptions, data: EvaluationData) -> float:
    results = evaluate_knn(options.config, OnnxBackbone(path, network), progress=False, data=data)
    return results[str(network.subnet)]['accuracy']


def _difference(source: Path, target: Path, network: ExportNetwork) -> float:
    images = torch.randn(2, network.in_channels, *network.image_size, generator=torch.Generator().manual_seed(0))
    expected, found = (OnnxBackbone(path, network).extract_features(images) for path in (source, target))
    return max((a - b).abs().max().item() for a, b in zip(found, expected))


def _calibration(network: ExportNetwork, options: ExportOptions, data: EvaluationData) -> Iterator[np.ndarray]:
    """Batches of images as the ONNX file takes them, spread evenly over what there is."""
    batches = _bank_images(data) if options.images is None else _folder_images(network, options.images)
    for images in batches:
        yield (images.flip(1) if network.swapped else images).contiguous().numpy()


def _bank_images(data: EvaluationData) -> Iterator[Tensor]:
    chosen = Subset(data.bank.dataset, _spread(len(data.bank.dataset)))
    for start in range(0, len(chosen), BATCH):
        batch = _collated([chosen[index] for index in range(start, min(start + BATCH, len(chosen)))])
        yield data.preprocessor(batch, False)['inputs']


def _collated(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of what ``PackInputs`` gives, without labels."""
    return dict(inputs=default_collate([sample['inputs'] for sample in samples]), data_samples=None)


def _folder_images(network: ExportNetwork, folder: str | os.PathLike) -> Iterator[Tensor]:
    paths, _ = list_images(folder)
    if not paths:
        raise ExportError(f'{folder}: there is no image in it to calibrate on')
    chosen = [os.path.join(folder, paths[index]) for index in _spread(len(paths))]
    for start in range(0, len(chosen), BATCH):
        yield load_batch(network, chosen[start : start + BATCH])


def _spread(number: int) -> list[int]:
    """At most ``CALIBRATION_IMAGES`` of ``number`` positions, evenly spread."""
    return sorted({round(position) for position in np.linspace(0, number - 1, min(number, CALIBRATION_IMAGES))})
