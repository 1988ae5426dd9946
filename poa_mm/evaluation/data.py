"""The images that subnets are scored on: the config's entry ``knn``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from poa_mm.elastic import Subnet

CONFIG_KEYS = ('bank', 'query', 'ks', 'temperature', 'subnets_per_pass')


class EvaluationData(NamedTuple):
    """What scores are computed from.

    Args:
        bank: Images to learn from.
        query: Images to classify.
        preprocessor: Makes a batch of either an input of the backbone.
        entry: The config's entry ``knn``.
    """

    bank: DataLoader
    query: DataLoader
    preprocessor: nn.Module
    entry: Mapping[str, Any]

    def passes(self, subnets: Sequence[Subnet]) -> Iterator[Sequence[Subnet]]:
        """Subnets to score in one pass over the images, and then in the next: ``knn.subnets_per_pass``."""
        number = self.entry.get('subnets_per_pass') or max(1, len(subnets))
        return (subnets[start : start + number] for start in range(0, len(subnets), number))


def open_data(cfg: Config) -> EvaluationData:
    """The data of the config's entry ``knn = dict(bank=..., query=...)``.

    Raises:
        ValueError: If the entry is missing or not valid.
    """
    entry = _checked_entry(cfg)
    return EvaluationData(_build_loader(entry['bank']), _build_loader(entry['query']), _build_preprocessor(cfg), entry)


def _checked_entry(cfg: Config) -> Mapping[str, Any]:
    entry = cfg.get('knn')
    if not isinstance(entry, Mapping):
        raise ValueError("the config has no entry 'knn = dict(bank=..., query=...)'")
    if not {'bank', 'query'} <= set(entry) <= set(CONFIG_KEYS):
        raise ValueError(f'knn has the keys {sorted(entry)}; valid are {CONFIG_KEYS}, the first two needed')
    if (number := entry.get('subnets_per_pass')) is not None and (not isinstance(number, int) or number < 1):
        raise ValueError(f'subnets_per_pass {number} is not a positive number')
    return entry


def _build_loader(loader: Mapping[str, Any]) -> DataLoader:
    # Fixed here, not in every config: order and completeness are what distributed extraction relies on.
    fixed = {'sampler': {'type': 'DefaultSampler', 'shuffle': False}, 'drop_last': False}
    loader = {'collate_fn': {'type': 'default_collate'}, **loader, **fixed}
    return Runner.build_dataloader(loader, seed=0)


def _build_preprocessor(cfg: Config) -> nn.Module:
    # The two places where mmengine's Runner looks.
    preprocessor = (cfg.get('model') or {}).get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    return MODELS.build({'type': 'SelfSupDataPreprocessor', **preprocessor})
