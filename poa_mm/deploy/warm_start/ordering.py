"""A supernet whose important units come first, and the same network at full size."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.device import get_device
from mmengine.registry import DefaultScope
from mmpretrain.registry import DATASETS
from torch import Tensor, nn

from poa_mm.checkpoint import CheckpointError
from poa_mm.datasets.sources import guess_dataset
from poa_mm.elastic import Subnet
from poa_mm.evaluation import evaluate_knn
from poa_mm.evaluation.data import build_preprocessor
from poa_mm.evaluation.progress import show_progress
from poa_mm.models.backbones.elastic_backbone import ElasticBackbone, Features

from .axes import axes_of, feature_axis, order_of, reorder
from .importance import magnitude, taylor
from .references import largest_difference

ORDERS = ('taylor', 'magnitude', 'none')
TOLERANCE = 1e-9  # largest change of a feature, in float64
NUM_IMAGES = 256


class Ordered(NamedTuple):
    """Weights in another order.

    Args:
        weights: State dict of the backbone.
        features: The channel of the source that comes to each place of the features; None where they stay.
        max_abs_diff: Largest change of a feature, in float64.
    """

    weights: dict[str, Tensor]
    features: list[int] | None
    max_abs_diff: float


def check_order(order: str) -> None:
    """Check that there is such an order.

    Raises:
        ValueError: If not.
    """
    if order not in ORDERS:
        raise ValueError(f'order {order!r} is not one of {", ".join(ORDERS)}')


def order_weights(backbone: ElasticBackbone, order: str, images: Iterable[Tensor] = ()) -> Ordered:
    """Put the important units of each axis first.

    Args:
        backbone: With its weights, in evaluation mode; it stays as it is.
        order: ``'taylor'``, ``'magnitude'`` or ``'none'``.
        images: For ``'taylor'``: prepared as for training, ``(1, C, H, W)`` each.

    Raises:
        ValueError: If there is no such order.
        CheckpointError: If the network would compute something else at full size.
    """
    check_order(order)
    weights = {name: value.detach().clone() for name, value in backbone.state_dict().items()}
    if order == 'none':
        return Ordered(weights, None, 0.0)
    axes = axes_of(backbone)
    importance = magnitude(backbone, axes) if order == 'magnitude' else taylor(backbone, axes, images)
    orders = {axis.name: order_of(importance[axis.name].cpu(), axis.groups) for axis in axes}
    weights = reorder({name: value.cpu() for name, value in weights.items()}, axes, orders)
    channels = feature_axis(backbone)
    features = None if channels is None else orders[channels]
    difference = change_of_features(backbone, weights, features)
    if not difference <= TOLERANCE:  # NaN is none either
        raise CheckpointError(
            f'order {order}: features of the whole network change by {difference:.2g}, more than {TOLERANCE:g}'
        )
    return Ordered(weights, None if features is None else features.tolist(), difference)


@torch.no_grad()
def change_of_features(backbone: nn.Module, weights: Mapping[str, Tensor], order: Tensor | None) -> float:
    """Largest difference of the features of random images with other weights, in float64.

    Args:
        backbone: With its weights; it stays as it is.
        weights: The others.
        order: The channel of its features that comes to each place of the others'. None where they stay.
    """
    kept = {name: value.detach().cpu().clone() for name, value in backbone.state_dict().items()}
    device, dtype = next((value.device, value.dtype) for value in backbone.parameters())
    generator = torch.Generator().manual_seed(0)
    size = (2, backbone.in_channels, *backbone.img_size)
    images = torch.randn(size, generator=generator, dtype=torch.float64).to(device)
    try:
        backbone.double()
        before = backbone.extract_features(images)
        backbone.load_state_dict(weights)
        after = backbone.extract_features(images)
    finally:
        backbone.to(dtype).load_state_dict(kept)
    if order is not None:
        before = Features(*(value[..., order.to(device)] for value in before))
    return largest_difference(after, before)


def images_of(
    config: Config,
    folder: str | os.PathLike | None,
    number: int,
    device: Any = 'cpu',
    progress: bool = False,
) -> Iterator[Tensor]:
    """Images without labels, evenly spread over all there are, prepared as for k-NN: ``(1, C, H, W)`` each.

    Args:
        config: Pre-training config; its entry ``knn`` says how images are prepared.
        folder: As for :func:`~poa_mm.datasets.sources.guess_dataset`. None: the images of ``knn.bank``, whose labels
            are not looked at.
        number: How many at most.
        device: Where they go. Default: ``'cpu'``.
        progress: Show how many have been used. Default: False.

    Raises:
        FileNotFoundError: If there is nothing.
        ValueError: If there are no images, or nothing says how they are prepared.
    """
    bank = ((config.get('knn') or {}).get('bank') or {}).get('dataset')
    if bank is None:
        raise ValueError("the config has no entry 'knn', whose bank says how images are prepared")
    dataset = dict(bank)
    if folder is not None:
        pipeline = list(bank['pipeline'])
        if not pipeline or 'Load' not in str(pipeline[0]['type']):  # the data set of the config holds pixels
            colour = 'grayscale' if config.model.backbone.get('in_channels', 3) == 1 else 'color'
            pipeline.insert(0, dict(type='SafeLoadImageFromFile', color_type=colour))
        kept = {key: bank[key] for key in ('extensions',) if key in bank}
        found = guess_dataset(os.fspath(folder))
        kept = {} if found['type'] != 'ImageFolder' else kept
        dataset = dict(**found, **kept, with_label=False, pipeline=pipeline)
    with _scope(config):
        built = DATASETS.build(dataset)
        preprocessor = build_preprocessor(config).to(device)
    if number < 1 or not len(built):
        raise ValueError(f'there are {len(built)} images, of which {number} are asked for')
    number = min(number, len(built))

    def prepared() -> Iterator[Tensor]:
        with show_progress('importance', number, progress) as advance:
            for index in range(number):
                sample = built[index * len(built) // number]
                yield preprocessor(default_collate([sample]), False)['inputs']
                advance(1)

    return prepared()


def score_orders(
    config: Config,
    backbone: ElasticBackbone,
    subnets: Sequence[Subnet | str] | None,
    images: Callable[[], Iterable[Tensor]],
    progress: bool = True,
) -> dict[str, dict[str, dict[str, float]]]:
    """k-NN accuracy of subnets as they are cut out, before any training, with each order.

    Args:
        config: With the entry ``knn``.
        backbone: With its weights, in evaluation mode; it stays as it is.
        subnets: What to score. Default: None, the smallest, the middle and the largest width and depth.
        images: Gives those for ``'taylor'``.
        progress: Show progress. Default: True.

    Returns:
        By order, what :func:`~poa_mm.evaluation.evaluate_knn` returns.
    """
    space = backbone.space
    if subnets is None:
        middle = Subnet(space.widths[len(space.widths) // 2], space.depths[len(space.depths) // 2])
        subnets = list(dict.fromkeys([space.smallest, middle, space.largest]))
    subnets = [space.parse(subnet) for subnet in subnets]
    kept = {name: value.detach().clone() for name, value in backbone.state_dict().items()}
    scores = {}
    try:
        for order in reversed(ORDERS):
            backbone.load_state_dict(order_weights(backbone, order, images() if order == 'taylor' else ()).weights)
            with _scope(config):
                scores[order] = evaluate_knn(config, backbone, subnets, progress)
            backbone.load_state_dict(kept)
    finally:
        backbone.load_state_dict(kept)
    return scores


def _scope(config: Config) -> AbstractContextManager:
    """In which the names in a config are looked up, as in a run."""
    return DefaultScope.overwrite_default_scope(config.get('default_scope') or 'mmpretrain')


def device_for(backbone: nn.Module) -> Any:
    """Move a backbone to where computing is fast, and say where that is."""
    device = get_device()
    backbone.to(device)
    return device
