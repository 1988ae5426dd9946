"""Mean and standard deviation of pixels that pass by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Moments:
    """Count, mean and spread of each channel, of which two can be added (Chan, Golub and LeVeque, 1979).

    Unlike sums of squares, these lose no digits where values are large and vary little.

    Args:
        count: Pixels.
        mean: ``(C,)`` float64.
        spread: Sum of squared distances from the mean, ``(C,)`` float64.
        low: Smallest values, ``(C,)``.
        high: Largest values, ``(C,)``.
    """

    count: int
    mean: np.ndarray
    spread: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, pixels: np.ndarray) -> Moments:
        """Those of an image ``(H, W, C)``; values that are not finite do not count."""
        values = pixels.reshape(-1, pixels.shape[2])
        if values.dtype.kind == 'f':
            values = values[np.isfinite(values).all(axis=1)]
        if not len(values):
            nothing = np.zeros(pixels.shape[2])
            return cls(0, nothing, nothing, nothing + np.inf, nothing - np.inf)
        if values.dtype in (np.uint8, np.uint16):
            return cls.of_histogram(histogram(pixels))
        mean = values.mean(axis=0, dtype=np.float64)
        spread = np.zeros_like(mean)
        for channel in range(len(mean)):  # one after the other: float64 of one at a time
            spread[channel] = np.square(values[:, channel] - mean[channel]).sum()
        return cls(len(values), mean, spread, values.min(axis=0).astype(float), values.max(axis=0).astype(float))

    @classmethod
    def of_histogram(cls, counts: np.ndarray) -> Moments:
        """Those of how often each whole number is there, ``(C, numbers)``."""
        levels = np.arange(counts.shape[1], dtype=np.float64)
        number = int(counts[0].sum())
        mean = counts @ levels / number
        spread = (counts * np.square(levels - mean[:, None])).sum(axis=1)
        there = counts > 0
        low, high = there.argmax(axis=1), counts.shape[1] - 1 - there[:, ::-1].argmax(axis=1)
        return cls(number, mean, spread, low.astype(float), high.astype(float))

    def __add__(self, other: Moments) -> Moments:
        if not other.count or not self.count:
            return self if self.count else other
        count = self.count + other.count
        shift = other.mean - self.mean
        return Moments(
            count,
            self.mean + shift * (other.count / count),
            self.spread + other.spread + shift**2 * (self.count * other.count / count),
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
        )

    @property
    def std(self) -> np.ndarray:
        """Standard deviation, ``(C,)``."""
        return np.sqrt(self.spread / max(self.count, 1))


def histogram(pixels: np.ndarray) -> np.ndarray:
    """How often each value of 8 or 16 bits is there, ``(C, 256)`` or ``(C, 65536)`` int64."""
    length = np.iinfo(pixels.dtype).max + 1
    channels = pixels.reshape(-1, pixels.shape[2]).T
    return np.stack([np.bincount(channel, minlength=length) for channel in channels])
