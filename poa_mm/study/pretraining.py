"""Pre-training as the study needs it: in this process, resumable, with its price on record."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from poa_mm.elastic import Subnet
from poa_mm.engine.launch import prepare, read_config
from poa_mm.engine.resume import set_start
from poa_mm.recipes import LENGTHS, follow, read_recipe

SECONDS_KEY = 'processor_seconds'


@HOOKS.register_module()
class ProcessorSecondsHook(Hook):
    """Writes into each checkpoint how many processor seconds have been spent on training up to it, over all resumes.

    What comes after the last checkpoint is no training: to end the run, and to read the file when a run that is over
    is started once more. So the price is the same however often that happens.

    Data has to be read in the process itself (``num_workers=0``): workers are not counted.

    Attributes:
        seconds (float): Those of the latest checkpoint, written or gone on from.
    """

    priority = 'VERY_HIGH'

    def __init__(self):
        self.seconds = self._before = 0.0
        self._start: float | None = None

    def before_train(self, runner: Runner) -> None:
        """Start the clock."""
        self._start = time.process_time()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Go on from what the interrupted run had spent."""
        self.seconds = self._before = float(checkpoint.get(SECONDS_KEY, 0.0))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the entry ``processor_seconds``."""
        if self._start is not None:
            self.seconds = self._before + time.process_time() - self._start
        checkpoint[SECONDS_KEY] = self.seconds


def alone(backbone: Mapping[str, Any], subnet: Subnet) -> dict[str, Any]:
    """Config of the elastic backbone whose one subnet is ``subnet``, the same network as in ``backbone``'s space.

    Raises:
        ValueError: If the backbone is neither an elastic ViT nor an elastic Swin with its arch as a dict.
    """
    kind, arch = backbone.get('type'), backbone.get('arch')
    kind = kind if isinstance(kind, str) else kind.__name__
    if kind not in ('ElasticVisionTransformer', 'ElasticSwinTransformer') or not isinstance(arch, Mapping):
        raise ValueError(f'the study knows elastic ViT and Swin with a dict for arch, not {kind!r} with {arch!r}')
    arch, width, whole = dict(arch), subnet.width, arch['embed_dims']
    arch['embed_dims'] = width
    if kind == 'ElasticSwinTransformer':
        arch['num_heads'] = [heads * width // whole for heads in arch['num_heads']]
        arch['depths'] = [*arch['depths'][:2], subnet.depth, arch['depths'][3]]
    else:
        arch['num_heads'] = arch['num_heads'] * width // whole
        arch['num_layers'] = subnet.depth
        arch['feedforward_channels'] = arch['feedforward_channels'] * width // whole
    config = {**backbone, 'arch': arch, 'widths': [width], 'depths': [subnet.depth], 'aliases': {}}
    if backbone.get('patch_sizes') is not None:
        config |= {'patch_sizes': None} | ({} if subnet.patch is None else {'patch_size': subnet.patch})
    return config


def study_config(
    config: Path,
    options: Mapping[str, Any],
    seed: int,
    folder: Path,
    subnet: Subnet | None,
    share: float = 1.0,
    lr: float = 1.0,
) -> Config:
    """The config of one pre-training.

    Args:
        config: Of the data set.
        options: What overrides it, by dotted keys; ``'last'`` for ``model.head.num_prototypes`` keeps the last head.
        seed: Of the run.
        folder: Where its files go.
        subnet: The whole space of the run. Default: None, that of the config.
        share: Length of the run and of all that happens in it, as a share of what the config says. Default: 1.
        lr: Learning rate, likewise. Default: 1.
    """
    options = dict(options)
    if options.get('model.head.num_prototypes') == 'last':
        options['model.head.num_prototypes'] = Config.fromfile(config).model.head.num_prototypes[-1:]
    cfg = read_config(config, options, folder)
    if share != 1:
        lengths = {key: cfg.recipe.get(key) for key in ('max_iters', *(f'{name}_iters' for name in LENGTHS))}
        follow(cfg, **{key: max(round(share * length), 1) for key, length in lengths.items() if length})
    if lr != 1:
        follow(cfg, lr=lr * read_recipe(cfg.recipe).lr)
    if subnet is not None:
        cfg.model.backbone = alone(cfg.model.backbone, subnet)
    cfg.train_dataloader.num_workers = 0
    cfg.train_dataloader.pop('persistent_workers', None)
    cfg.randomness = dict(seed=seed)
    cfg.visualizer = dict(type='UniversalVisualizer')
    every = max(cfg.train_cfg.max_iters // 8, 1)
    cfg.default_hooks.checkpoint = dict(type='POACheckpointHook', by_epoch=False, interval=every, max_keep_ckpts=1)
    cfg.custom_hooks = [*cfg.custom_hooks, dict(type='ProcessorSecondsHook')]
    return cfg


def pretrain(cfg: Config) -> tuple[Path, float]:
    """Train, or go on with, what ``cfg`` says.

    Returns:
        The last checkpoint and the processor seconds of the training, which it holds.
    """
    prepare(cfg, 'none')
    set_start(cfg, 'auto')
    runner = Runner.from_cfg(cfg)
    runner.train()
    hook = next(hook for hook in runner.hooks if isinstance(hook, ProcessorSecondsHook))
    return Path(cfg.work_dir, f'iter_{runner.iter}.pth'), hook.seconds
