"""Comparing exported files with the subnet, in a process that has neither poa_mm nor OpenMMLab."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS, TRANSFORMS
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from poa_mm.deploy.config_text import single_image

from . import standalone, to_timm
from .network import ExportError, ExportNetwork, Outputs
from .options import ExportOptions
from .to_torch import example_size

TOLERANCES = dict(timm=1e-4, huggingface=1e-4, processor=1e-3, onnx=1e-4, torch=1e-5)
SWAP_TOLERANCE = 1e-4
PICTURES = ((0.75, 1.25), (2.0, 1.5))  # height and width of photographs to try, as parts of the pre-training's size


class Verification:
    """Jobs of one process that loads what was written.

    Args:
        folder: For the inputs and expected outputs; emptied by nobody.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.jobs: list[dict[str, Any]] = []
        self.subjects: list[tuple[str, str]] = []  # subnet and format of each job

    def add(self, network: ExportNetwork, format: str, path: Path, options: ExportOptions) -> None:
        """Compare ``path``, as its format says, with ``network``."""
        job = dict(format=format, path=str(path), cases=['three', 'one'], tensors=self._tensors(network, options))
        if format == 'timm':
            job['arguments'] = dict(name=to_timm.BASES[network.kind], **to_timm.model_args(network))
        if format in ('onnx', 'torch') and options.dynamic_size:
            job['cases'].append('other')
        if format == 'processor':
            job |= dict(cases=['picture0', 'picture1'], files=[str(self._picture(network, i)) for i in range(2)])
        self.jobs.append(job)
        self.subjects.append((str(network.subnet), format))

    def _tensors(self, network: ExportNetwork, options: ExportOptions) -> str:
        """File with images and what the subnet makes of them, by case."""
        path = self.folder / f'{network.name}.safetensors'
        if path.exists():
            return str(path)
        generator = torch.Generator().manual_seed(0)
        sizes = dict(three=(3, *network.image_size), one=(1, *network.image_size))
        if options.dynamic_size:
            sizes['other'] = (2, *example_size(network, options))
        cases = {
            case: torch.randn(batch, network.in_channels, *size, generator=generator)
            for case, (batch, *size) in sizes.items()
        }
        tensors = {f'{case}.images': images for case, images in cases.items()}
        for case, images in cases.items():
            outputs = network.outputs(images)
            _check_swap(network, images, outputs)
            tensors |= {f'{case}.{name}': value.contiguous() for name, value in outputs._asdict().items()}
        if network.in_channels == 3 and not network.has_bands:
            for index in range(len(PICTURES)):
                tensors[f'picture{index}.features'] = pipeline_features(network, self._picture(network, index))
        save_file(tensors, path)
        return str(path)

    def _picture(self, network: ExportNetwork, index: int) -> Path:
        """A picture file of soft colours, larger and smaller than the network's images."""
        path = self.folder / f'{network.image_size[0]}x{network.image_size[1]}_{index}.png'
        if not path.exists():
            height, width = _even_margins(network, PICTURES[index])
            colours = np.random.default_rng(index).integers(0, 256, (5, 7, 3), dtype=np.uint8)
            Image.fromarray(colours).resize((width, height), Image.BICUBIC).save(path)
        return path

    def run(self) -> list[float]:
        """Largest differences, job by job.

        Raises:
            ExportError: If a file cannot be loaded, or differs by more than its tolerance.
        """
        path = self.folder / 'jobs.json'
        path.write_text(json.dumps(self.jobs), encoding='utf-8')
        offline = dict(HF_HUB_OFFLINE='1', TRANSFORMERS_VERBOSITY='error')
        done = subprocess.run(
            [sys.executable, standalone.__file__, str(path)],
            cwd=self.folder,
            env=os.environ | offline,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise ExportError(f'the process that verifies exports failed: {done.stderr.strip()[-500:]}')
        results = json.loads((self.folder / standalone.RESULTS).read_text(encoding='utf-8'))
        return [_checked(*subject, result) for subject, result in zip(self.subjects, results)]


def _checked(subnet: str, format: str, result: Mapping[str, Any]) -> float:
    if 'error' in result:
        raise ExportError(f'{format} of subnet {subnet} cannot be loaded: {result["error"]}; nothing was written')
    difference = result['difference']
    if not difference <= TOLERANCES[format]:  # NaN is none either
        raise ExportError(
            f'{format} of subnet {subnet} differs by {difference:.2g} from the subnet, more than '
            f'{TOLERANCES[format]}; nothing was written'
        )
    return difference


def _check_swap(network: ExportNetwork, images: Tensor, outputs: Outputs) -> None:
    """Check that the network with its channels swapped is the one that was extracted."""
    if not network.swapped:
        return
    pairs = zip(outputs, network.outputs(images, original=True))
    difference = max((found - expected).abs().max().item() for found, expected in pairs)
    if not difference <= SWAP_TOLERANCE:
        raise ExportError(f'subnet {network.subnet} differs by {difference:.2g} with its colour channels swapped')


def _even_margins(network: ExportNetwork, parts: tuple[float, float]) -> tuple[int, int]:
    """Height and width whose longer edge, too, has an even margin around the middle that is cut out.

    mmpretrain rounds the half of an odd one to the even number, the others down.
    """
    height, width = (max(round(part * size), 2) for part, size in zip(parts, network.image_size))
    edge = to_timm.options_of_preparation(network)['edge']
    if edge is None:
        return height, width
    while (edge * max(height, width) // min(height, width) - network.image_size[0]) % 2:
        height, width = (height + 1, width) if height > width else (height, width + 1)
    return height, width


def load_batch(network: ExportNetwork, paths: Iterable[str | os.PathLike]) -> Tensor:
    """Image files as the network took them in pre-training, ``(B, C, H, W)``, in its own order of channels."""
    described = network.stock.data_preprocessor
    steps = single_image(network.image_size, network.in_channels, described.get('value_range'))
    steps = [*steps, dict(type='PackInputs')]
    used = ('mean', 'std', 'to_rgb', 'bgr_to_rgb', 'rgb_to_bgr')
    normalisation = {key: value for key, value in described.items() if key in used}
    kind = 'MultiBandDataPreprocessor' if network.has_bands else 'SelfSupDataPreprocessor'
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        pipeline = Compose([TRANSFORMS.build(step) for step in steps])
        preprocessor = MODELS.build(dict(type=kind, **normalisation))
    images = torch.stack([pipeline(dict(img_path=str(path)))['inputs'] for path in paths])
    return preprocessor(dict(inputs=images, data_samples=None))['inputs']


@torch.no_grad()
def pipeline_features(network: ExportNetwork, path: str | os.PathLike) -> Tensor:
    """Class features of an image file by OpenMMLab's pipeline and the stock network, ``(1, D)``."""
    return network.elastic.plain_features(network.stock.build(), load_batch(network, [path])).cls
