"""Data whose order and randomness follow from the position in the run alone."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sized
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dist import get_dist_info, sync_random_seed
from mmengine.registry import DATA_SAMPLERS, DATASETS
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from .decoding import BadImageError

# What randomness is for: the second number of a key of `seed_everything`, after the seed of the run.
ORDER, SAMPLE, ITERATION = range(3)
MAX_SUBSTITUTES = 20  # that are tried for one sample before the error is raised


def seed_everything(*key: int) -> None:
    """Seed the global generators of Python, numpy and torch, each with its own digest of ``key``.

    Args:
        *key: Non-negative numbers: seed of the run, what for, and which one. Other keys give other, unrelated seeds.
    """
    words = np.random.SeedSequence(key).generate_state(12)
    random.seed(words[:4].tobytes())
    np.random.seed(words[4:8])
    seed = int(words[8:10].view(np.uint64)[0])
    torch.default_generator.manual_seed(seed)
    # Not torch.manual_seed: where CUDA has not started, it notes the call stack each time, for longer than it takes to
    # read a small image. Every iteration seeds anew, so that a device that starts later loses nothing.
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


class Draw(NamedTuple):
    """One sample to read.

    Args:
        index: Of the sample in the dataset.
        key: Of the randomness that it is read with, for :func:`seed_everything`.
    """

    index: int
    key: tuple[int, ...]


@DATA_SAMPLERS.register_module()
class ResumableSampler(Sampler):
    """Endless stream of samples that can start anywhere, at no cost.

    The stream runs over the dataset again and again, in a new order each time; it has no end and knows no batches.
    All ranks share it: rank ``r`` of ``n`` reads positions ``r, r + n, r + 2n, ...``. What lies at a position, and
    the randomness it is read with, follow from the seed and the position, whatever the number of ranks.

    For :class:`~poa_mm.engine.ResumableTrainLoop`, which sets seed and start, and whose dataset takes a
    :class:`Draw` for an index.

    Args:
        dataset: What to read.
        shuffle: Whether the order is random. Default: True.
        seed: Must be the same on every rank. Default: one that rank 0 draws.

    Attributes:
        start (int): Position, counted over all ranks, that the next iterator begins at.

    Raises:
        ValueError: If the dataset is empty.
    """

    def __init__(self, dataset: Sized, shuffle: bool = True, seed: int | None = None):
        if len(dataset) == 0:
            raise ValueError('the dataset is empty')
        self.rank, self.world_size = get_dist_info()
        self.size = len(dataset)
        self.shuffle = shuffle
        self.seed = sync_random_seed() if seed is None else seed
        self.start = 0

    def __iter__(self) -> Iterator[Draw]:
        current, order = None, None
        for position in itertools.count(self.start + self.rank, self.world_size):
            repetition, offset = divmod(position, self.size)
            if repetition != current:
                current, order = repetition, self._order(repetition)
            yield Draw(int(order[offset]), (self.seed, SAMPLE, position))

    def _order(self, repetition: int) -> Tensor:
        if not self.shuffle:
            return torch.arange(self.size)
        seed = np.random.SeedSequence((self.seed, ORDER, repetition)).generate_state(1, np.uint64)[0]
        return torch.randperm(self.size, generator=torch.Generator().manual_seed(int(seed)))

    def __len__(self) -> int:
        """Samples of the dataset; the stream itself has no end."""
        return self.size


@DATASETS.register_module()
class SeededDataset(Dataset):
    """Reads each sample of another dataset with the randomness that its :class:`Draw` names.

    Where that raises a :class:`BadImageError`, a sample drawn at random takes its place. Which one follows from the
    key, so that a run that is repeated or resumed has the same substitutes. The data sample of a substitute then has
    ``bad_images`` among its metainfo, for :class:`~poa_mm.engine.BadDataHook`: a list with an entry for each image
    that could not be used, a dict of its ``position`` in the run, ``index`` in the dataset, ``path`` and ``reason``.

    Args:
        dataset: The other dataset, or its config. Its samples are dicts with a data sample at ``data_samples``, as
            ``PackInputs`` makes them.
    """

    def __init__(self, dataset: Dataset | Mapping[str, Any]):
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, Mapping) else dataset
        self.metainfo = getattr(self.dataset, 'metainfo', None)

    def full_init(self) -> None:
        """Load the annotations, as mmengine's datasets may do later than they are built."""
        if hasattr(self.dataset, 'full_init'):
            self.dataset.full_init()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> Any:
        index, bad = draw.index, []
        seed_everything(*draw.key)
        while True:
            try:
                sample = self.dataset[index]
            except BadImageError as error:
                bad.append(dict(position=draw.key[-1], index=index, path=error.path, reason=error.reason))
                if len(bad) > MAX_SUBSTITUTES:
                    raise
                seed_everything(*draw.key, len(bad))
                index = int(np.random.randint(len(self)))
            else:
                break
        if bad:
            sample['data_samples'].set_metainfo(dict(bad_images=bad))
        return sample
