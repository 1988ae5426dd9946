"""Class features of images, every subnet in one pass over the data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from mmengine.dataset import DefaultSampler
from mmengine.dist import all_gather, get_dist_info
from torch import Tensor, nn
from torch.utils.data import DataLoader

from poa_mm.elastic import Subnet


def extract_features(
    backbone: nn.Module,
    dataloader: DataLoader,
    data_preprocessor: nn.Module,
    subnets: Iterable[Subnet | str],
    progress: Callable[[int], None] | None = None,
    shard: bool = False,
) -> tuple[dict[Subnet, Tensor], Tensor]:
    """Class features of a whole data set, see :func:`feature_batches`.

    Args:
        backbone: An elastic backbone; its device is where the features are.
        dataloader: Images and labels; distributed, over a ``DefaultSampler`` without shuffling.
        data_preprocessor: Makes a batch of the loader an input of the backbone.
        subnets: What to compute, as ``backbone.space`` knows it.
        progress: Called after each batch with the number of images done. Default: None.
        shard: Keep every ``world_size``-th image on each rank instead of all of them. Default: False.

    Returns:
        The features ``(N, D)`` of each subnet, float32, and the labels ``(N,)``, in the order of the
        data set and on every rank.

    Raises:
        ValueError: As for :func:`feature_batches`.
    """
    rank, world_size = get_dist_info() if shard else (0, 1)
    parts: dict[Subnet, list[Tensor]] = {}
    label_parts = []
    for features, labels in feature_batches(backbone, dataloader, data_preprocessor, subnets, progress):
        # Every batch but the last is a multiple of the world size long, so the stride goes on evenly.
        # Cloned, because a view would keep the features of all ranks alive.
        for subnet, feature in features.items():
            parts.setdefault(subnet, []).append(feature[rank::world_size].clone())
        label_parts.append(labels[rank::world_size])
    # Emptied as it goes, so that only one subnet is in memory twice.
    return {subnet: torch.cat(parts.pop(subnet)) for subnet in list(parts)}, torch.cat(label_parts)


def feature_batches(
    backbone: nn.Module,
    dataloader: DataLoader,
    data_preprocessor: nn.Module,
    subnets: Iterable[Subnet | str],
    progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[dict[Subnet, Tensor], Tensor]]:
    """Batches of class features in evaluation mode, without gradients.

    Each image is read and preprocessed once and goes through every subnet. Distributed, each rank works
    on its own part of the data; what they computed is gathered batch by batch, so every rank gets all
    features, in the order of the data set. The duplicates that pad the last batch are dropped.

    Args: As for :func:`extract_features`.

    Yields:
        The features ``(n, D)`` of each subnet, float32 on the backbone's device, and the labels ``(n,)``
        there, of the next ``n`` images of the data set.

    Raises:
        ValueError: If a subnet is not in the space, the data set is empty or has not one label for each
            image, features are not finite, or a distributed loader has an unsuitable sampler.
    """
    subnets = list(dict.fromkeys(map(backbone.space.parse, subnets)))
    left = len(dataloader.dataset)
    _check_loader(dataloader)
    device = next(backbone.parameters()).device
    data_preprocessor.to(device)
    was_training = backbone.training
    backbone.eval()
    try:
        for batch in dataloader:
            batch = data_preprocessor(batch, False)
            images = batch['inputs']
            labels = _gathered(_labels(batch['data_samples'], len(images)).to(device), left)
            features = {subnet: _gathered(_class_features(backbone, images, subnet), left) for subnet in subnets}
            for subnet, feature in features.items():
                if not feature.isfinite().all():
                    raise ValueError(f'features of subnet {subnet} are not finite: the weights have diverged')
            left -= len(labels)
            if progress is not None:
                progress(len(labels))
            yield features, labels
    finally:
        backbone.train(was_training)


@torch.no_grad()
def _class_features(backbone: nn.Module, images: Tensor, subnet: Subnet) -> Tensor:
    return backbone.extract_features(images, subnet).cls.float()


def _labels(samples: Sequence, num_images: int) -> Tensor:
    found = [sample.gt_label for sample in samples or () if 'gt_label' in sample]
    if len(found) != num_images or any(label.numel() != 1 or label < 0 for label in found):
        raise ValueError('each image needs exactly one gt_label, not negative; the data set gives others')
    return torch.cat(found).long()


def _gathered(local: Tensor, left: int) -> Tensor:
    """Rows of all ranks in the order of the data set, at most the ``left`` ones that are not padding.

    Rank r reads the images r, r + world_size, r + 2 * world_size .., so rows interleave.
    """
    return torch.stack(all_gather(local.contiguous()), dim=1).flatten(0, 1)[:left]


def _check_loader(dataloader: DataLoader) -> None:
    if not len(dataloader.dataset):
        raise ValueError('the data set is empty')
    sampler = dataloader.sampler
    even = isinstance(sampler, DefaultSampler) and not sampler.shuffle and sampler.round_up
    if get_dist_info()[1] > 1 and not even:
        raise ValueError(
            "distributed extraction needs dict(type='DefaultSampler', shuffle=False, round_up=True); "
            f'got {type(sampler).__name__}'
        )
