"""Levels of more than 8 bits as 8 bits."""

from __future__ import annotations

import numpy as np

DEPTHS = (8, 10, 12, 14, 15, 16)  # bits that sensors and formats have; 15: of 16 with a sign
SMALL = 16.0  # fractions above 1 and up to here are no levels of an 8-bit scale


def to_8_bits(
    values: np.ndarray, value_range: tuple[float, float] | None = None, valid: np.ndarray | None = None
) -> np.ndarray:
    """Scale values linearly to 0..255.

    Args:
        values: Of an image, of any shape and kind of number.
        value_range: Values that become 0 and 255; those beyond are cut off. Default: :func:`full_range`.
        valid: Which values count, of the same shape. Default: those that are finite.

    Returns:
        uint8, of the same shape. What is not finite or valid becomes 0.

    Raises:
        ValueError: If no value is left, or the range is empty.
    """
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    if value_range is None and values.dtype == np.uint8:
        return values
    valid = np.isfinite(values) if valid is None else valid & np.isfinite(values)
    if not valid.any():
        raise ValueError('no pixel has a value')
    low, high = full_range(values[valid]) if value_range is None else value_range
    if not low < high:
        raise ValueError(f'value_range ({low}, {high}) is not rising')
    scaled = (np.where(valid, values, low).astype(np.float64) - low) * (255 / (high - low))
    return np.rint(scaled).clip(0, 255).astype(np.uint8)


def full_range(values: np.ndarray) -> tuple[float, float]:
    """What most likely is black and white on the scale that values were measured on.

    Files do not say how many of their 16 bits are used, so this goes by the largest value: black is 0, and white the
    full scale of the smallest of 8, 10, 12, 14 and 16 bits that holds it; of fractions it is 1, where none is above.
    Where values are negative, or larger than 16 bits, black and white are the least and the largest value.

    Args:
        values: Of one image, finite, one at least.
    """
    low, high = float(values.min()), float(values.max())
    if low < 0:
        return low, max(high, low + 1)
    if values.dtype == np.int8:
        return 0.0, 127.0
    if not np.issubdtype(values.dtype, np.integer):
        if high <= 1:
            return 0.0, 1.0
        if high <= SMALL and (values % 1).any():
            return 0.0, high
    depths = [bits for bits in DEPTHS if bits != 15 or values.dtype == np.int16]
    return 0.0, next((float(2**bits - 1) for bits in depths if high <= 2**bits - 1), high)
