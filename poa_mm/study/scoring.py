"""Scores of one network of the study."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from poa_mm.elastic import Subnet
from poa_mm.evaluation.data import open_data
from poa_mm.evaluation.knn import knn_accuracy

from .probes import FineTuning, Labelled, balanced, classified, fine_tune, linear_probe

SHARES = {'labels_1': 0.01, 'labels_10': 0.1}
ALL_LABELS = 'labels_100'
# What the config's entry `study` changes.
SETTINGS: Mapping[str, Any] = {
    'probe_iterations': 1500,
    'labels_1': dict(iterations=300, lr=1e-3),
    'labels_10': dict(iterations=1000, lr=1e-3),
    'labels_100': dict(iterations=6000, lr=1e-3),
}


class StudyData(NamedTuple):
    """All images of a data set, normalised, in memory.

    Args:
        train: The bank of the config's ``knn``; its labels are used after the pre-training only.
        test: The queries.
        num_classes: Number of classes.
    """

    train: Labelled
    test: Labelled
    num_classes: int


def load_data(cfg: Config) -> StudyData:
    """Read what ``cfg.knn`` names."""
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    data = open_data(cfg)
    train, test = (_labelled(loader, data.preprocessor) for loader in (data.bank, data.query))
    return StudyData(train, test, int(torch.cat([train.labels, test.labels]).max()) + 1)


def _labelled(loader: Iterable, preprocessor: nn.Module) -> Labelled:
    images, labels = [], []
    for batch in loader:
        batch = preprocessor(batch, False)
        images.append(batch['inputs'])
        labels += [sample.gt_label for sample in batch['data_samples']]
    return Labelled(torch.cat(images), torch.cat(labels).long())


# --- networks --------------------------------------------------------------------------------
class ClassFeature(nn.Module):
    """One subnet of an elastic backbone, images ``(B, C, H, W)`` to class features ``(B, D)``."""

    def __init__(self, backbone: nn.Module, subnet: Subnet):
        super().__init__()
        self.backbone = backbone
        self.subnet = subnet
        self.channels = backbone.channels_of(subnet)

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone.extract_features(x, self.subnet).cls


class CutOut(nn.Module):
    """A subnet as the stock network that extraction gives, images ``(B, C, H, W)`` to class features ``(B, D)``."""

    def __init__(self, backbone: nn.Module, subnet: Subnet):
        super().__init__()
        config, state = backbone.extract(subnet)
        self.network = MODELS.build(config)
        self.network.load_state_dict(state)
        self.family = type(backbone)
        self.channels = backbone.channels_of(subnet)

    def forward(self, x: Tensor) -> Tensor:
        return self.family.plain_features(self.network, x).cls


# --- scores ----------------------------------------------------------------------------------
@torch.no_grad()
def features(network: nn.Module, data: Labelled, batch_size: int = 500) -> Labelled:
    """Class features of all images with their labels."""
    network.eval()
    return Labelled(torch.cat([network(part) for part in data.inputs.split(batch_size)]), data.labels)


def frozen_scores(network: nn.Module, cfg: Config, data: StudyData, seed: int, linear: bool = True) -> dict[str, float]:
    """Accuracies ``knn`` and, if wanted, ``linear`` of a network's features.

    Args:
        network: Images to features.
        cfg: Its ``knn`` has the numbers of neighbours and the temperature, its ``study`` the length of the probe.
        data: Images.
        seed: Of the linear probe.
        linear: Train the probe. Default: True.
    """
    train, test = features(network, data.train), features(network, data.test)
    by_k = knn_accuracy(*train, *test, cfg.knn.get('ks', (10, 20)), cfg.knn.get('temperature', 0.07), chunk_size=1000)
    scores = {'knn': max(by_k.values())}
    if linear:
        length = settings(cfg)['probe_iterations']
        scores['linear'] = linear_probe(train, test, data.num_classes, seed, length)
    return scores


def few_labels(network: nn.Module, name: str, cfg: Config, data: StudyData, seed: int) -> float:
    """Accuracy of a network fine-tuned with a share of the labels, the same images for every network.

    Args:
        network: With ``channels``; changed in place.
        name: Key of :data:`SHARES`.
        cfg: Its entry ``study`` has the recipe.
        data: Images.
        seed: Of the choice of images and of the fine-tuning.
    """
    part = data.train[balanced(data.train.labels, SHARES[name], seed)]
    how = FineTuning(**settings(cfg)[name])
    return classified(fine_tune(network, network.channels, part, data.num_classes, how, seed), data.test)


def supervise(network: nn.Module, cfg: Config, data: StudyData, seed: int) -> int:
    """Train a network with all labels, in place; the number of iterations."""
    how = FineTuning(**settings(cfg)[ALL_LABELS])
    fine_tune(network, network.channels, data.train, data.num_classes, how, seed)
    return how.iterations


def settings(cfg: Config) -> dict[str, Any]:
    """:data:`SETTINGS` with what the config says.

    Raises:
        ValueError: If its entry ``study`` has an unknown key.
    """
    own = dict(cfg.get('study') or {})
    if not set(own) <= set(SETTINGS):
        raise ValueError(f'study has the keys {sorted(own)}; valid are {", ".join(SETTINGS)}')
    return {**SETTINGS, **own}
