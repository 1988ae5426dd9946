"""One supernet with patches of several sizes against one supernet for each size, trained and scored alike."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.registry import init_default_scope

from poa_mm.checkpoint import load_teacher
from poa_mm.elastic import Subnet
from poa_mm.evaluation import evaluate_knn
from poa_mm.evaluation.report import write_whole

from .evidence import Summary
from .pretraining import pretrain, study_config
from .rows import CONFIGS

CONFIG = CONFIGS / 'vitt_fmnist_patches.py'
ALL = 'all'  # patch sizes in one supernet


class Trained(NamedTuple):
    """One run.

    Args:
        sizes: ``'all'``, or the patch size in pixels, as text.
        seed: Of the run.
        knn: Accuracy in [0, 1] by width, depth and patch size in pixels.
        seconds: Processor seconds of the training.
        iterations: Of the training.
    """

    sizes: str
    seed: int
    knn: Mapping[tuple[int, int, int], float]
    seconds: float
    iterations: int


def compare_patch_sizes(
    work_dir: Path,
    seeds: Iterable[int] = (0, 1),
    config: Path = CONFIG,
    options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> list[Trained]:
    """Train and score what is not done yet; what was interrupted goes on.

    Args:
        work_dir: Folder of all files: a folder for each run, with its checkpoint and ``scores.json``.
        seeds: Default: 0 and 1.
        config: Of the supernet with all patch sizes. Default: that of Fashion-MNIST.
        options: What overrides it, by dotted keys. Default: nothing.
        progress: Show the progress of scoring. Default: True.

    Returns:
        All runs, seed by seed.

    Raises:
        ValueError: If the config has one patch size only.
    """
    cfg = Config.fromfile(config)
    sizes = cfg.model.backbone.get('patch_sizes') or ()
    if len(sizes) < 2:
        raise ValueError(f'{config}: expected model.backbone.patch_sizes, two or more; found {list(sizes)}')
    names = [ALL, *map(str, sorted(sizes))]
    return [_run(Path(work_dir), config, name, seed, options or {}, progress) for seed in seeds for name in names]


def _run(work_dir: Path, config: Path, sizes: str, seed: int, options: Mapping[str, Any], progress: bool) -> Trained:
    folder = work_dir / f'{sizes}-seed{seed}'
    path = folder / 'scores.json'
    if not path.exists():
        cfg = _config(config, sizes, seed, options, folder)
        checkpoint, seconds = pretrain(cfg)
        init_default_scope(cfg.get('default_scope', 'mmpretrain'))
        backbone = load_teacher(checkpoint)[0]
        scores = evaluate_knn(cfg, backbone, progress=progress)
        found = dict(
            knn={str(named(backbone, name)): score['accuracy'] for name, score in scores.items()},
            seconds=round(seconds, 1),
            iterations=cfg.train_cfg.max_iters,
        )
        text = json.dumps(found, indent=1)
        write_whole(path, lambda part: part.write_text(text, encoding='utf-8'))
    found = json.loads(path.read_text(encoding='utf-8'))
    knn = {(s.width, s.depth, s.patch): value for s, value in ((Subnet.parse(n), v) for n, v in found['knn'].items())}
    return Trained(sizes, seed, knn, found['seconds'], found['iterations'])


def named(backbone: Any, name: str) -> Subnet:
    """A subnet with its patch size, the native one too: what compares between supernets."""
    subnet = backbone.space.parse(name)
    return Subnet(subnet.width, subnet.depth, backbone.patch_size_of(subnet)[0])


def _config(config: Path, sizes: str, seed: int, options: Mapping[str, Any], folder: Path) -> Config:
    """Of one run; with one patch size, masks lie on its grid."""
    cfg = study_config(config, options, seed, folder, None)
    if sizes == ALL:
        return cfg
    patch = int(sizes)
    cfg.model.backbone.update(patch_sizes=None, patch_size=patch)
    for transform in cfg.train_dataloader.dataset.pipeline:
        if transform.type == 'BlockMask':
            transform.grid = cfg.model.backbone.img_size // patch
    return cfg


def as_markdown(runs: Sequence[Trained]) -> str:
    """k-NN accuracies in percent, mean and standard deviation over seeds, by subnet, and what was trained."""
    patches = sorted({patch for run in runs for *_, patch in run.knn})
    sizes = sorted({(width, depth) for run in runs for width, depth, _ in run.knn})
    head = ['k-NN (%)', *(f'{name}, patch {p}' for p in patches for name in ('one for all', 'one for each'))]
    lines = []
    for width, depth in sizes:
        keys = [(width, depth, patch) for patch in patches]
        lines.append([f'{width}x{depth}', *(_cell(runs, name, [key]) for key in keys for name in (ALL, str(key[2])))])
    every = [[(*size, patch) for size in sizes] for patch in patches]
    lines.append(['mean', *(_cell(runs, name, keys) for keys in every for name in (ALL, str(keys[0][2])))])
    minutes = [f'{name}: {_minutes(runs, name)}' for name in (ALL, *map(str, patches))]
    table = '\n'.join(f'| {" | ".join(line)} |' for line in [head, ['---'] * len(head), *lines])
    return f'{table}\n\nProcessor minutes of a run: {", ".join(minutes)}.\n'


def _cell(runs: Sequence[Trained], sizes: str, keys: Sequence[tuple[int, int, int]]) -> str:
    """Mean over some subnets, of each seed."""
    values = [sum(run.knn[key] for key in keys) / len(keys) for run in runs if run.sizes == sizes]
    return Summary.of(values).percent() if values else ''


def _minutes(runs: Sequence[Trained], sizes: str) -> str:
    values = [run.seconds / 60 for run in runs if run.sizes == sizes]
    return f'{sum(values) / len(values):.1f}' if values else '-'
