import itertools
import random

import numpy as np
import pytest
import torch

from poa_mm.datasets import Digits, ResumableSampler, SeededDataset
from poa_mm.datasets.resumable import Draw, seed_everything


def randomness():
    return random.random(), np.random.rand(), torch.rand(()).item()


def test_a_key_gives_one_randomness_and_another_key_another():
    found = []
    for key in [(0, 1, 2), (0, 1, 3), (0, 2, 2), (1, 1, 2), (0, 1, 2)]:
        seed_everything(*key)
        found.append(randomness())
    assert found[0] == found[4]
    assert len({value for values in found[:4] for value in values}) == 12


def stream(sampler, number, start=0):
    sampler.start = start
    return list(itertools.islice(sampler, number))


def test_each_pass_reads_every_sample_once_in_a_new_order():
    indices = [draw.index for draw in stream(ResumableSampler(range(10), seed=0), 30)]
    passes = [indices[i : i + 10] for i in (0, 10, 20)]
    assert all(sorted(part) == list(range(10)) for part in passes)
    assert len(set(map(tuple, passes))) == 3
    again, other = (ResumableSampler(range(10), seed=seed) for seed in (0, 1))
    assert [draw.index for draw in stream(again, 30)] == indices
    assert [draw.index for draw in stream(other, 30)] != indices


def test_without_shuffling_the_order_is_that_of_the_dataset():
    assert [draw.index for draw in stream(ResumableSampler(range(4), shuffle=False), 10)] == [0, 1, 2, 3] * 2 + [0, 1]


@pytest.mark.parametrize('start', [3, 10, 25])
def test_a_stream_starts_anywhere(start):
    sampler = ResumableSampler(range(10), seed=0)
    assert stream(sampler, 12, start) == stream(sampler, 12 + start)[start:]


def test_a_far_start_is_as_fast_as_any():
    sampler = ResumableSampler(range(10), seed=0)
    assert len(stream(sampler, 2, start=10**15)) == 2


def test_keys_are_never_used_twice():
    draws = stream(ResumableSampler(range(10), seed=0), 30)
    assert len({draw.key for draw in draws}) == 30


@pytest.mark.parametrize('world_size', [2, 3])
def test_ranks_share_one_stream(monkeypatch, world_size):
    alone = stream(ResumableSampler(range(10), seed=0), 24)
    parts = []
    for rank in range(world_size):
        monkeypatch.setattr('poa_mm.datasets.resumable.get_dist_info', lambda rank=rank: (rank, world_size))
        parts.append(stream(ResumableSampler(range(10), seed=0), 24 // world_size))
    assert [draw for turn in zip(*parts) for draw in turn] == alone


def test_an_empty_dataset_is_refused():
    with pytest.raises(ValueError, match='empty'):
        ResumableSampler([])


class Noise:
    metainfo = dict(classes=('noise',))
    loaded = False

    def __len__(self):
        return 3

    def full_init(self):
        self.loaded = True

    def __getitem__(self, index):
        return index, randomness()


def test_a_sample_has_the_randomness_of_its_draw():
    dataset = SeededDataset(Noise())
    first = dataset[Draw(2, (0, 1, 7))]
    randomness()
    other = dataset[Draw(2, (0, 1, 8))]
    assert first[0] == other[0] == 2
    assert dataset[Draw(2, (0, 1, 7))] == first != other


def test_the_wrapped_dataset_is_seen_through():
    dataset = SeededDataset(Noise())
    dataset.full_init()
    assert dataset.dataset.loaded
    assert len(dataset) == 3
    assert dataset.metainfo == Noise.metainfo
    assert len(SeededDataset(dict(type=Digits, split='test'))) == 364


def test_the_numbers_of_a_key_are_those_of_manual_seed():
    seed_everything(5, 6)
    words = np.random.SeedSequence((5, 6)).generate_state(12)
    found = torch.rand(5)
    torch.manual_seed(int(words[8:10].view(np.uint64)[0]))
    assert torch.equal(found, torch.rand(5))


def test_a_started_gpu_is_seeded_too(monkeypatch):
    seeds = []
    monkeypatch.setattr(torch.cuda, 'manual_seed_all', seeds.append)
    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: False)
    seed_everything(1)
    assert not seeds
    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: True)
    seed_everything(1)
    assert seeds == [torch.initial_seed()]
