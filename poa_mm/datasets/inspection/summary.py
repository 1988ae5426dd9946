"""What there is to say about many images; summaries of parts add up."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import numpy as np

from .moments import Moments, histogram
from .record import DARK, Record

SIZES = (1, 32, 64, 96, 128, 192, 224, 256, 384, 512, 768, 1024, 2048, 4096)  # bounds of the histogram of shorter sides
ODD = ('empty', 'truncated', 'too large', 'unreadable', 'single colour', 'near-black')
Group = tuple[int, str]  # channels and type of the values


@dataclass
class Pixels:
    """Pixels of all images of a kind.

    Attributes:
        images: How many.
        moments: Of each channel.
        histogram: How often each value of 16 bits is there, ``(C, 65536)``; None for other types.
    """

    images: int
    moments: Moments
    histogram: np.ndarray | None

    @classmethod
    def of(cls, pixels: np.ndarray) -> Pixels:
        if pixels.dtype == np.uint16:
            counts = histogram(pixels)
            return cls(1, Moments.of_histogram(counts), counts)
        return cls(1, Moments.of(pixels), None)

    def __add__(self, other: Pixels) -> Pixels:
        counts = None if self.histogram is None else self.histogram + other.histogram
        return Pixels(self.images + other.images, self.moments + other.moments, counts)


@dataclass
class Summary:
    """Counts, odd images and pixels.

    Attributes:
        images: How many were looked at.
        suffixes, channels, bits, modes: How many images have each.
        shorter, longer: Sides of each image that can be used.
        transparent: How many have an alpha channel or a transparent colour.
        orientations: How many are turned or mirrored by EXIF, by its number.
        odd: Images (number and reason) by what is odd about them.
        pixels: By channels and type; ``(3, 'uint8')`` is what ordinary images are in training.
        brightness: Number and brightness of images whose range of values is not known before all are seen.
        numbers, digests, hashes: Of each image, its number, the hash of its file and that of its look.
    """

    images: int = 0
    suffixes: Counter = field(default_factory=Counter)
    channels: Counter = field(default_factory=Counter)
    bits: Counter = field(default_factory=Counter)
    modes: Counter = field(default_factory=Counter)
    shorter: array = field(default_factory=partial(array, 'i'))
    longer: array = field(default_factory=partial(array, 'i'))
    transparent: int = 0
    orientations: Counter = field(default_factory=Counter)
    odd: dict[str, list[tuple[int, str]]] = field(default_factory=lambda: {kind: [] for kind in ODD})
    pixels: dict[Group, Pixels] = field(default_factory=dict)
    brightness: dict[Group, list[tuple[int, float]]] = field(default_factory=dict)
    numbers: array = field(default_factory=partial(array, 'q'))
    digests: array = field(default_factory=partial(array, 'Q'))
    hashes: array = field(default_factory=partial(array, 'Q'))

    def add(self, number: int, record: Record, look: bool = False) -> None:
        """Count an image.

        Args:
            number: Of the image in its source.
            record: What there is to say about it.
            look: Whether to note its difference hash.
        """
        self.images += 1
        self.suffixes[record.suffix] += 1
        self.numbers.append(number)
        self.digests.append(record.digest)
        if record.error is not None:
            self.odd[record.kind].append((number, record.error))
            self.hashes.extend([0] * look)
            return
        self.channels[record.channels] += 1
        self.bits[record.bits] += 1
        self.modes[record.mode] += 1
        self.shorter.append(min(record.size))
        self.longer.append(max(record.size))
        self.transparent += record.transparent
        if record.orientation in range(2, 9):
            self.orientations[record.orientation] += 1
        group = (record.pixels.shape[2], str(record.pixels.dtype))
        pixels = Pixels.of(record.pixels)
        self.pixels[group] = self.pixels[group] + pixels if group in self.pixels else pixels
        flat = record.flat
        if flat:
            self.odd['single colour'].append((number, f'all pixels are {record.pixels[0, 0].tolist()}'))
        if not record.deep:
            if (bright := record.bright) < DARK:
                self.odd['near-black'].append((number, f'99 of 100 pixels are at most {bright:.0f} of 255'))
        else:
            self.brightness.setdefault(group, []).append((number, record.bright))
        self.hashes.extend([0 if flat else record.difference_hash()] * look)

    def merge(self, other: Summary) -> None:
        """Add what another one has counted."""
        self.images += other.images
        self.transparent += other.transparent
        for name in ('suffixes', 'channels', 'bits', 'modes', 'orientations'):
            getattr(self, name).update(getattr(other, name))
        for name in ('shorter', 'longer', 'numbers', 'digests', 'hashes'):
            getattr(self, name).extend(getattr(other, name))
        for kind in ODD:
            self.odd[kind] += other.odd[kind]
        for group, pixels in other.pixels.items():
            self.pixels[group] = self.pixels[group] + pixels if group in self.pixels else pixels
        for group, values in other.brightness.items():
            self.brightness.setdefault(group, []).extend(values)

    def duplicates(self) -> list[list[int]]:
        """Images whose files are the same, byte for byte: their numbers, group by group."""
        return _groups(np.array(self.digests, np.uint64), np.array(self.numbers))

    def near_duplicates(self, distance: int = 3) -> list[list[int]]:
        """Images that look alike though their files differ: hashes that differ in few bits. Empty if none were noted.

        Args:
            distance: Bits that may differ, at most 3.
        """
        hashes, numbers = np.array(self.hashes, np.uint64), np.array(self.numbers)
        digests = np.array(self.digests, np.uint64)
        if len(hashes) != len(numbers):
            return []
        parent = {}

        def find(item: int) -> int:
            while parent.setdefault(item, item) != item:
                item = parent[item]
            return item

        for shift in (0, 16, 32, 48):  # hashes with at most 3 bits apart share one of four parts
            for group in _groups((hashes >> np.uint64(shift)) & np.uint64(0xFFFF), np.arange(len(hashes))):
                group = [item for item in group if hashes[item]]
                for position, first in enumerate(group):
                    apart = np.bitwise_xor(hashes[group[position + 1 :]], hashes[first])
                    for offset in np.flatnonzero(_bits_set(apart) <= distance):
                        second = group[position + 1 + int(offset)]
                        if digests[first] != digests[second]:
                            parent[find(second)] = find(first)
        found: dict[int, list[int]] = {}
        for item in list(parent):
            found.setdefault(find(item), []).append(int(numbers[item]))
        return sorted(sorted(group) for group in found.values() if len(group) > 1)

    def size_histogram(self) -> dict[str, int]:
        """Images by their shorter side."""
        shorter = np.array(self.shorter)
        bounds = (*SIZES, np.inf)
        counts = {
            (f'{low}..{high - 1}' if high != np.inf else f'{low}..'): int(((shorter >= low) & (shorter < high)).sum())
            for low, high in pairwise(bounds)
        }
        return {name: count for name, count in counts.items() if count}


def _groups(keys: np.ndarray, values: np.ndarray) -> list[list[int]]:
    """Values whose keys are equal, where there are several, in order."""
    order = np.argsort(keys, kind='stable')
    edges = np.flatnonzero(np.diff(keys[order])) + 1
    groups = [sorted(map(int, group)) for group in np.split(values[order], edges) if len(group) > 1]
    return sorted(groups)


def _bits_set(values: np.ndarray) -> np.ndarray:
    """How many bits of each number of 64 bits are set."""
    return np.unpackbits(np.ascontiguousarray(values).view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1)
