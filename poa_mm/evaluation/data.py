"""The images that subnets are scored on: the config's entry ``knn``."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from poa_mm.datasets.classes import RelabelledDataset, class_names, few
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

    Classes of the query are those of the bank that have their names. Those that the bank lacks are warned of, and
    get labels of their own, so that their images count as errors.

    Raises:
        ValueError: If the entry is missing or not valid, a data set cannot be opened, or bank and query have not one
            class in common.
    """
    entry = _checked_entry(cfg)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmpretrain')):
        bank, query = (_build_loader(entry[name], f'knn.{name}') for name in ('bank', 'query'))
        labels = _labels_of_query(class_names(bank.dataset), class_names(query.dataset))
        if labels is not None:
            dataset = dict(type=RelabelledDataset, dataset=entry['query']['dataset'], labels=labels)
            query = _build_loader({**entry['query'], 'dataset': dataset}, 'knn.query')
        return EvaluationData(bank, query, build_preprocessor(cfg), entry)


def chosen_subnets(backbone: nn.Module, subnets: Iterable[Subnet | str] | None) -> list[Subnet]:
    """What is to be scored, each once.

    Args:
        backbone: An elastic backbone, or one with its ``space``.
        subnets: Sizes or names. Default: None, all of them.

    Raises:
        ValueError: If one is not in the space, or there is none.
    """
    found = list(dict.fromkeys(map(backbone.space.parse, backbone.space if subnets is None else subnets)))
    if not found:
        raise ValueError('no subnet to score')
    return found


def _labels_of_query(known: Sequence[str] | None, names: Sequence[str] | None) -> list[int] | None:
    """Numbers for the query's classes, of which ``names`` are the names; ``known`` are those of the bank.

    None where they can stay as they are.
    """
    if known is None or names is None:
        if known is not names:
            which = 'query' if names is None else 'bank'
            print_log(f'knn.{which} has no names of classes: its labels count as they are', 'current', logging.WARNING)
        return None
    if known == names:
        return None
    strange = [name for name in names if name not in set(known)]
    if len(strange) == len(names):
        raise ValueError(f'knn.query has no class of knn.bank: {few(names)} are not among {few(known)}')
    if strange:
        text = f'knn.bank has no class {few(strange)}: images of the query of that name count as errors'
        print_log(text, 'current', logging.WARNING)
    numbers = {name: label for label, name in enumerate([*known, *strange])}
    return [numbers[name] for name in names]


def _checked_entry(cfg: Config) -> Mapping[str, Any]:
    entry = cfg.get('knn')
    if not isinstance(entry, Mapping):
        raise ValueError("the config has no entry 'knn = dict(bank=..., query=...)'")
    if not {'bank', 'query'} <= set(entry) <= set(CONFIG_KEYS):
        raise ValueError(f'knn has the keys {sorted(entry)}; valid are {CONFIG_KEYS}, the first two needed')
    if (number := entry.get('subnets_per_pass')) is not None and (not isinstance(number, int) or number < 1):
        raise ValueError(f'subnets_per_pass {number} is not a positive number')
    return entry


def _build_loader(loader: Mapping[str, Any], key: str = 'knn') -> DataLoader:
    # Fixed here, not in every config: order and completeness are what distributed extraction relies on.
    fixed = {'sampler': {'type': 'DefaultSampler', 'shuffle': False}, 'drop_last': False}
    loader = {'collate_fn': {'type': 'default_collate'}, **loader, **fixed}
    try:
        return Runner.build_dataloader(loader, seed=0)
    except (AssertionError, RuntimeError) as error:  # mmpretrain's, of folders that do not fit
        raise ValueError(f'{key}.dataset: {error}') from error


def build_preprocessor(cfg: Config) -> nn.Module:
    """The data preprocessor of a config."""
    # The two places where mmengine's Runner looks.
    preprocessor = (cfg.get('model') or {}).get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    return MODELS.build({'type': 'SelfSupDataPreprocessor', **preprocessor})
