"""The scorecard of a supernet: what each of its subnets costs on this machine, and what it scores."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from poa_mm.checkpoint import file_sha256
from poa_mm.datasets.fingerprint import fingerprint
from poa_mm.elastic import Subnet
from poa_mm.mistakes import check_out_dir
from poa_mm.version import __version__

from .backbone import load_backbone
from .data import EvaluationData, open_data
from .knn import evaluate_knn
from .latency import describe_machine
from .linear import evaluate_linear
from .measurement import ONNX_FOLDER, Measurement, MeasureSettings, check_fits
from .runtimes import MEMORY, WriteOnnx
from .scorecard_files import FORMAT, write_scorecard
from .unfinished import Unfinished

PROTOCOLS = ('knn', 'linear')


def make_scorecard(
    cfg: Config,
    checkpoint: str | os.PathLike,
    out_dir: str | os.PathLike,
    settings: MeasureSettings | None = None,
    protocols: Sequence[str] = ('knn',),
    write_onnx: WriteOnnx | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Score and measure every subnet, and write what was found: see :func:`write_scorecard`.

    Interrupted, the same call goes on. Nothing is written before the arguments have been checked.

    Args:
        cfg: Config with the entries ``model`` and ``knn``, which says what is scored.
        checkpoint: Of the pre-training.
        out_dir: Folder to write to, made if it is missing. A finished scorecard in it is replaced.
        settings: How costs are measured. Default: torch on the CPU, one image at a time.
        protocols: Scores: ``'knn'`` (:func:`evaluate_knn`), ``'linear'`` (:func:`evaluate_linear`). Default: k-NN.
        write_onnx: Exports a network, which the runtime ``'onnxruntime'`` needs: that of
            :mod:`poa_mm.deploy.export`. Default: None.
        progress: Show progress. Default: True.

    Returns:
        The scorecard, plain data.

    Raises:
        ValueError: If an argument, the config or the data is not valid, a runtime or device is not there, a batch does
            not fit into the memory, or the folder holds an unfinished scorecard of other settings or data.
        OSError: If ``out_dir`` cannot be written to.
        CheckpointError: If the checkpoint cannot be read or does not fit the config. It is a ``ValueError``.
    """
    settings, out_dir = settings or MeasureSettings(), Path(out_dir)
    settings.check()
    check_out_dir(out_dir)
    if not protocols or not set(protocols) <= set(PROTOCOLS) or len(set(protocols)) < len(protocols):
        raise ValueError(f'protocols must be some of {", ".join(PROTOCOLS)}, each once; got {list(protocols)}')
    if 'onnxruntime' in settings.runtimes and write_onnx is None:
        raise ValueError("runtime 'onnxruntime' needs write_onnx, which exports a network")
    backbone_cfg = (cfg.get('model') or {}).get('backbone')
    if backbone_cfg is None:
        raise ValueError("the config has no 'model.backbone'")
    data = open_data(cfg)  # its mistakes come to light before hours of work
    backbone = load_backbone(backbone_cfg, checkpoint, data.preprocessor)
    if not hasattr(backbone, 'extract'):
        raise ValueError(f'{checkpoint} is of one network; a scorecard compares the subnets of a supernet')
    check_fits(backbone, settings)

    card: dict[str, Any] = dict(
        format=FORMAT,
        poa_mm=__version__,
        checkpoint=str(checkpoint),
        checkpoint_sha256=file_sha256(checkpoint),
        scored_on=_digest({key: cfg.get(key) for key in ('knn', 'data_preprocessor')} | _preprocessor(cfg)),
        family=type(backbone).__name__,
        space=backbone.space.describe(),
        image_size=list(backbone.img_size),
    )
    costs = dict(
        machine=describe_machine(settings.devices),
        threads=settings.threads or torch.get_num_threads(),
        rounds=settings.rounds,
        measure_all=settings.measure_all,
        conditions=list(map(str, settings.conditions)),
    )
    files = {f'images of knn.{name}': fingerprint(getattr(data, name).dataset) for name in ('bank', 'query')}
    unfinished = Unfinished(out_dir, card | files, costs, PROTOCOLS)
    card |= costs | dict(protocols=list(protocols))
    try:
        scores = {name: _scores(name, cfg, backbone, data, unfinished, progress) for name in protocols}
        found = Measurement(backbone.cpu(), settings, unfinished, write_onnx, progress).run()
    finally:
        unfinished.write()
    card['memory'] = {f'{c.runtime}-{c.device}': MEMORY[c.runtime, c.device] for c in settings.conditions}
    card['made'] = datetime.now(timezone.utc).isoformat(timespec='seconds')
    card['fits'] = found['fits']
    card['subnets'] = _rows(backbone, backbone_cfg, scores, found['costs'])
    write_scorecard(card, out_dir)
    unfinished.remove()
    shutil.rmtree(out_dir / ONNX_FOLDER, ignore_errors=True)
    return card


def _scores(
    protocol: str, cfg: Config, backbone: nn.Module, data: EvaluationData, unfinished: Unfinished, progress: bool
) -> dict[Subnet, float]:
    """Scores in [0, 1], kept after each pass over the images."""
    missing = [subnet for subnet in backbone.space if unfinished.get(protocol, str(subnet)) is None]
    if missing:
        backbone.to(get_device())
    for part in data.passes(missing):
        for subnet, score in SCORERS[protocol](cfg, backbone, part, progress, data).items():
            unfinished.put((protocol, subnet), score)
        unfinished.write()
    return {subnet: unfinished.get(protocol, str(subnet)) for subnet in backbone.space}


def _knn(
    cfg: Config, backbone: nn.Module, subnets: Iterable[Subnet], progress: bool, data: EvaluationData
) -> dict[str, float]:
    results = evaluate_knn(cfg, backbone, subnets, progress, data)
    return {name: score['accuracy'] for name, score in results.items()}


SCORERS: dict[str, Callable[..., dict[str, float]]] = {'knn': _knn, 'linear': evaluate_linear}


def _rows(
    backbone: nn.Module,
    backbone_cfg: Mapping[str, Any],
    scores: Mapping[str, Mapping[Subnet, float]],
    costs: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """One entry for each subnet, from the smallest to the largest."""
    with torch.device('meta'):  # for shapes, without copying any weight
        shapes = MODELS.build({key: value for key, value in backbone_cfg.items() if key != 'init_cfg'})
    space, rows = backbone.space, []
    for subnet in space:
        params, flops = backbone.cost(subnet)
        rows.append(
            dict(
                subnet=str(subnet),
                aliases=[name for name, named in space.aliases.items() if named == subnet],
                params=params,
                file_bytes=file_bytes(shapes.extract(subnet)[1]),
                macs=flops // 2,
                flops=flops,
                scores={protocol: by_subnet[subnet] for protocol, by_subnet in scores.items()},
                costs=costs[str(subnet)],
            )
        )
    return rows


def file_bytes(state: Mapping[str, Tensor]) -> int:
    """Size of the safetensors file of some weights: the tensors and the header that names them, without metadata."""
    header, end = {}, 0
    for name, tensor in state.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = dict(dtype='F32', shape=list(tensor.shape), data_offsets=[start, end])
    length = len(json.dumps(header, separators=(',', ':')))
    return 8 + -(-length // 8) * 8 + end


def _preprocessor(cfg: Config) -> dict[str, Any]:
    return {'model.data_preprocessor': (cfg.get('model') or {}).get('data_preprocessor')}


def _digest(value: Any) -> str:
    """Short hash of some entries of a config, to tell whether they are the same."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=repr).encode()).hexdigest()[:16]
