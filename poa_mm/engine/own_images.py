"""A pre-training config for somebody's own images, from a few numbers."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from ..recipes import follow
from .data_config import use_data
from .launch import read_config

CONFIG = Path(__file__).parents[1] / '.mim' / 'configs' / 'poa' / 'vits_folder.py'
FAMILIES: Mapping[str, Mapping[str, Any] | None] = {  # backbones in place of that of CONFIG
    'vit': None,
    'swin': dict(type='ElasticSwinTransformer', arch='tiny', img_size=224),
    'resnet': dict(type='ElasticResNet', stage_blocks=(3, 4, 6, 3), img_size=224),
}
PHOTO = 96  # pixels from which on a margin of 1/8 is cut off before k-NN


def own_config(
    config: str | os.PathLike,
    data: str | os.PathLike,
    work_dir: str | os.PathLike | None = None,
    *,
    image_size: int | None = None,
    patch_size: int | None = None,
    patch_sizes: Iterable[int] | None = None,
    widths: Iterable[int] | None = None,
    depths: Iterable[Any] | None = None,
    options: Mapping[str, Any] | None = None,
    **recipe: Any,
) -> Config:
    """Config that pre-trains on the images at ``data``.

    Args:
        config: A config file, or a family, ``'vit'``, ``'swin'`` or ``'resnet'``: the recipe of
            ``configs/poa/vits_folder.py`` with its ViT, a Swin-T or a ResNet-50 with wider bottlenecks.
        data: As for :func:`~poa_mm.datasets.sources.guess_dataset`.
        work_dir: Where logs and checkpoints go. Default: the config's, or ``work_dirs/NAME``.
        image_size: Height and width of the global crops; local ones follow. Default: that of the config.
        patch_size: Height and width of a ViT's patches. Default: that of the config.
        patch_sizes: Patch sizes of a ViT's subnets, ``patch_size`` among them. Default: those of the config.
        widths: Widths of the subnets; the largest is the network's. Default: those of the config.
        depths: Depths of the subnets; the largest is the network's. Default: those of the config.
        options: What else overrides the config, by dotted keys. Default: nothing.
        **recipe: Numbers of the config's recipe, such as ``epochs``, ``batch_size`` and ``lr``.

    Raises:
        FileNotFoundError: If there is no such config, or there are no images.
        ValueError: If a number is not valid for the recipe or the network.
    """
    family = str(config) if str(config) in FAMILIES else None
    cfg = read_config(CONFIG if family else config, work_dir=work_dir)
    if family and FAMILIES[family]:
        cfg.model.backbone = FAMILIES[family]
    use_data(cfg, os.fspath(data))
    _set_sizes(cfg.model.backbone, widths, depths)
    if (image_size, patch_size, patch_sizes) != (None, None, None):
        _set_images(cfg, image_size, patch_size, patch_sizes)
    if recipe:
        follow(cfg, **recipe)
    cfg.merge_from_dict(dict(options or {}))
    return cfg


def _set_sizes(backbone: ConfigDict, widths: Iterable[int] | None, depths: Iterable[Any] | None) -> None:
    """Set the space of subnets, and the network to the largest of them."""
    if widths is None and depths is None:
        return
    from poa_mm.models.backbones import ElasticResNet, ElasticSwinTransformer, ElasticVisionTransformer

    kind = {cls.__name__: cls for cls in (ElasticVisionTransformer, ElasticSwinTransformer, ElasticResNet)}
    kind = kind.get(backbone.type)
    if kind is None:
        raise ValueError(f'widths and depths of {backbone.type} cannot be set; name them in options')
    if widths is not None:
        backbone.widths = sorted(widths)
    if depths is not None:
        backbone.depths = list(depths)
    if kind is ElasticResNet:
        if widths is not None:
            backbone.mid_channels = backbone.widths[-1]
        if depths is not None:
            backbone.stage_blocks = tuple(stage if isinstance(stage, int) else max(stage) for stage in depths)
        return
    arch = backbone.get('arch', 'large' if kind is ElasticVisionTransformer else 'base')
    arch = dict(kind.arch_zoo[arch.lower()]) if isinstance(arch, str) else dict(arch)
    width = backbone.widths[-1] if widths is not None else arch['embed_dims']
    if kind is ElasticVisionTransformer:
        depth = max(backbone.depths) if depths is not None else arch['num_layers']
        heads, hidden = (width * arch[key] // arch['embed_dims'] for key in ('num_heads', 'feedforward_channels'))
        backbone.arch = dict(embed_dims=width, num_layers=depth, num_heads=heads, feedforward_channels=hidden)
        return
    blocks, heads = list(arch['depths']), [number * width // arch['embed_dims'] for number in arch['num_heads']]
    blocks[2] = max(backbone.depths) if depths is not None else blocks[2]
    backbone.arch = dict(embed_dims=width, depths=blocks, num_heads=heads)


def _set_images(cfg: Config, image_size: int | None, patch_size: int | None, patch_sizes: Iterable[int] | None) -> None:
    """Set the sizes of images, crops and patches, and the grid of masks."""
    backbone = cfg.model.backbone
    before = backbone.get('img_size', 224)
    after = image_size or before
    is_vit = backbone.type == 'ElasticVisionTransformer'
    for name, value in (('patch_size', patch_size), ('patch_sizes', patch_sizes)):
        if value is None:
            continue
        if not is_vit:
            raise ValueError(f'{name} is a choice of ViTs, the backbone is {backbone.type}')
        backbone[name] = value if isinstance(value, int) else list(value)
    backbone.img_size = after
    stride = backbone.get('patch_size', 16) if is_vit else 32
    strides = sorted({stride, *(backbone.get('patch_sizes') or ())})
    for each in strides:
        if after % each:
            raise ValueError(
                f'image_size {after} is not a multiple of {each} pixels, the patch or last stride of the network'
            )
    step = math.lcm(*strides)  # of the sizes that crops may have
    pipelines = [cfg.train_dataloader.dataset.pipeline]
    pipelines += [cfg.knn[part].dataset.pipeline for part in ('bank', 'query') if part in cfg.get('knn', {})]
    for transform in _transforms(pipelines):
        kind = str(transform.type)
        if 'RandomResizedCrop' in kind:
            share = transform.scale / before
            transform.scale = after if share == 1 else max(round(after * share / step), 1) * step
        elif kind == 'BlockMask':
            transform.grid = after // stride * (1 if is_vit else 2)
        elif kind == 'ResizeEdge':
            transform.scale = after + 2 * round(after / 14) if after >= PHOTO else after
        elif kind == 'CenterCrop':
            transform.crop_size = after


def _transforms(value: Any) -> Iterator[ConfigDict]:
    """Every config of a transform in nested pipelines."""
    if isinstance(value, Mapping):
        if 'type' in value:
            yield value
        for item in value.values():
            yield from _transforms(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _transforms(item)
