"""From weights that exist to a checkpoint that POA starts from."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mmengine
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmpretrain.registry import MODELS
from torch import Tensor

from poa_mm.checkpoint import SUPERNET_KEY, describe_supernet, file_sha256
from poa_mm.deploy.public_checkpoint import build_poa, config_of_model
from poa_mm.deploy.staged_files import StagedFiles, save_to
from poa_mm.elastic import Subnet
from poa_mm.mistakes import check_out_file
from poa_mm.models import POA
from poa_mm.models.selfsup.frozen_teacher import drop
from poa_mm.version import __version__

from .files import find_file
from .fit import Fitted, fit
from .layouts import VIT
from .ordering import NUM_IMAGES, check_order, device_for, images_of, order_weights, score_orders
from .references import compare_features, compute_reference
from .source import Asked, Source, read_source


class WarmStart(NamedTuple):
    """What :func:`warm_start` did.

    Args:
        layout: Of the weights.
        left_out: Names of what is no part of the backbone.
        assumed: What the file does not say and was taken as usual, as sentences.
        changes: What was resized, added or folded, as sentences.
        library: Whose network the supernet was compared with, and its version.
        max_abs_diff: Largest difference of a feature.
        normalisation: A sentence if the file does not say how its images were normalised, else None.
        order: By what units were ordered.
        scores: By order, then by subnet, k-NN accuracies before any training; None if they were not asked for.
    """

    layout: str
    left_out: list[str]
    assumed: list[str]
    changes: list[str]
    library: str
    max_abs_diff: float
    normalisation: str | None
    order: str = 'none'
    scores: dict[str, dict[str, dict[str, float]]] | None = None


def warm_start(
    config: str | os.PathLike | Config,
    weights: str | os.PathLike,
    out: str | os.PathLike,
    *,
    order: str = 'none',
    images: str | os.PathLike | None = None,
    num_images: int = NUM_IMAGES,
    scores: bool = False,
    subnets: Sequence[Subnet | str] | None = None,
    heads: int | None = None,
    groups: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> WarmStart:
    """Write a checkpoint of POA whose student and teacher are a network that exists; its heads are new.

    Args:
        config: Pre-training config whose backbone is that network at full size.
        weights: Its file, or a folder as a library saves it; nothing in it is executed.
        out: Checkpoint to write. It appears complete or not at all.
        order: What the units that smaller subnets keep are chosen by: ``'taylor'``, how much the features of
            ``images`` change without them; ``'magnitude'`` of their weights; ``'none'``, as they are. Default: 'none'.
        images: For ``'taylor'``: a folder, shards or tables of images; labels are not looked at. Default: None, those
            of the config's ``knn.bank``.
        num_images: How many of them. Default: 256.
        scores: Score subnets by k-NN with each order. Default: False.
        subnets: Which. Default: None, the smallest, the middle and the largest width and depth.
        heads: Attention heads of a ViT. Default: None, what the file says, or heads of 64 channels.
        groups: Of the norms of a ResNet. Default: None, what the file says, or 32.
        seed: Of the heads. Default: 0.
        progress: Show the progress of k-NN and importance. Default: False.

    Raises:
        CheckpointError: If the file cannot be read, is of another network, has parts that elastic backbones do not
            have, or the supernet does not compute what the library's network does.
        ValueError: If images would be normalised otherwise than for these weights, or an option is not valid.
    """
    config = config if isinstance(config, Config) else Config.fromfile(config)
    _check_options(order, images, scores, subnets)
    check_out_file(out)
    if Path(out).absolute() == find_file(weights).absolute():
        raise ValueError(f'{out} is the file of the weights, which would be lost')
    model_config = config_of_model(config)
    model = _new(model_config, seed)
    source = read_source(weights, Asked(tuple(model.backbone.img_size), type(model.backbone).__name__, heads, groups))
    normalisation = _check_normalisation(source, model_config.get('data_preprocessor') or {})
    fitted = fit(source, model.backbone)
    library, difference = _check(source, fitted, model_config['backbone'])
    backbone = model.backbone
    backbone.load_state_dict(fitted.weights)
    backbone.eval()
    device = device_for(backbone)

    def some_images() -> Iterable[Tensor]:
        return images_of(config, images, num_images, device, progress)

    found = score_orders(config, backbone, subnets, some_images, progress) if scores else None
    ordered = order_weights(backbone, order, some_images() if order == 'taylor' else ())
    backbone.cpu()
    model.backbone.load_state_dict(ordered.weights)
    model.reset_teacher()
    meta = {
        'epoch': 0,
        'iter': 0,
        'cfg': config.pretty_text,
        'mmengine_version': mmengine.__version__,
        'poa_mm': __version__,
        'source': source.path.name,
        'source_sha256': file_sha256(source.path),
        'layout': source.layout,
        'order': order,
        'feature_order': ordered.features,
    }
    write_start(out, model, model_config, meta)
    return WarmStart(
        layout=source.layout,
        left_out=source.left_out,
        assumed=source.assumed,
        changes=fitted.changes,
        library=library,
        max_abs_diff=difference,
        normalisation=normalisation,
        order=order,
        scores=found,
    )


def _check_options(order: str, images: Any, scores: bool, subnets: Any) -> None:
    """Nothing that is given is passed over.

    Raises:
        ValueError: If there is no such order, or an option belongs to another one.
    """
    check_order(order)
    if images is not None and order != 'taylor' and not scores:
        raise ValueError(f'images are for the order taylor and for scores, not for the order {order}')
    if subnets is not None and not scores:
        raise ValueError('subnets are named for scores, which are not asked for')


def _check_normalisation(source: Source, preprocessor: Mapping[str, Any]) -> str | None:
    """Compare how images are normalised.

    Returns:
        A sentence if the file does not say it.

    Raises:
        ValueError: If the config does otherwise; names both.
    """
    ours = {key: preprocessor.get(key) for key in ('mean', 'std')}
    ours['to_rgb'] = any(preprocessor.get(key) for key in ('to_rgb', 'bgr_to_rgb', 'rgb_to_bgr'))
    if source.normalisation is None:
        return (
            f'{source.path.name} does not say how its images were normalised; make sure that it was as in the config '
            f'(mean {ours["mean"]}, std {ours["std"]}, of 0 to 255)'
        )
    theirs = {key: source.normalisation.get(key) for key in ours}
    colours = len(theirs['mean']) > 1
    if not (_alike(ours['mean'], theirs['mean']) and _alike(ours['std'], theirs['std'])) or (
        colours and ours['to_rgb'] != bool(theirs['to_rgb'])
    ):
        raise ValueError(
            f'{source.path}: images are normalised by {_text(theirs)}, in the config by {_text(ours)}; set '
            'model.data_preprocessor'
        )
    return None


def _alike(ours: Any, theirs: Any) -> bool:
    if ours is None or len(ours) not in (1, len(theirs)):
        return False
    ours = list(ours) * (len(theirs) // len(ours))
    return all(abs(a - b) <= 1e-3 * max(1.0, abs(b)) for a, b in zip(ours, theirs))


def _text(normalisation: Mapping[str, Any]) -> str:
    rows = {key: value if value is None else [round(item, 3) for item in value] for key, value in
            normalisation.items() if key != 'to_rgb'}  # fmt: skip
    return f'mean {rows["mean"]}, std {rows["std"]}, to_rgb {bool(normalisation["to_rgb"])}'


def _check(source: Source, fitted: Fitted, backbone_config: Mapping[str, Any]) -> tuple[str, float]:
    """Compare with the source's own network, at the sizes that the source is made for."""
    backbone_config = {key: value for key, value in backbone_config.items() if key != 'init_cfg'}
    if fitted.resized:
        keys = ('img_size', 'patch_size') if source.family == VIT else ('window_size',)
        backbone_config |= {key: source.config[key] for key in keys}
    with torch.random.fork_rng():
        backbone = MODELS.build(backbone_config)
    # Not resized, the weights are the same as those that are written.
    backbone.load_state_dict(fit(source, backbone).weights if fitted.resized else fitted.weights)
    backbone.double().eval()
    reference = compute_reference(source)
    return reference.library, compare_features(backbone, reference, source.path)


def _new(model_config: Mapping[str, Any], seed: int) -> POA:
    """The model with new heads."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)  # mmengine logs every parameter
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = build_poa(model_config)
            model.head.init_weights()
    finally:
        logger.setLevel(level)
    return model


def write_start(out: str | os.PathLike, model: POA, model_config: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Write a checkpoint that ``load_from`` takes.

    Args:
        out: The file. It appears complete or not at all.
        model: With its weights.
        model_config: Its config.
        meta: What the checkpoint says of itself.
    """
    entry = describe_supernet(model_config)
    if model.deck is not None:
        entry['deck'] = model.deck.state_dict()
    weights = dict(model.state_dict())
    drop(weights)  # a frozen teacher gets its weights where a run starts
    checkpoint = {'meta': dict(meta), 'state_dict': weights, 'message_hub': {}, SUPERNET_KEY: entry}
    out = Path(out)
    with StagedFiles(out.parent) as files:
        files.add(out.name, lambda temporary: save_to(temporary, checkpoint))
