"""Settings of a pre-training run that suit a set of images."""

from __future__ import annotations

from typing import Any

import numpy as np

from .record import DARK
from .summary import Group, Pixels, Summary

PATCH = 16
GLOBAL, LOCAL = 224, 96  # pixels of the paper's crops
ORDINARY = (3, 'uint8')
TAIL = 1e-3  # of the pixels may lie beyond the suggested range, on each side


def suggestions(summary: Summary) -> dict[str, Any]:
    """What to write into the config.

    Returns:
        ``in_channels``; ``value_range``, None for ordinary images; ``mean`` and ``std`` on a scale of 0..255, as the
        data preprocessor takes them; ``global_crop`` and ``local_crop`` in pixels; ``batch_size``. Empty if no image
        can be used.
    """
    if not summary.pixels:
        return {}
    group = main_group(summary)
    pixels = summary.pixels[group]
    value_range = None if group == ORDINARY else suggested_range(pixels)
    mean, std = scaled(pixels, value_range)
    side = int(np.median(np.array(summary.shorter)))
    crop = min(GLOBAL, max(side // PATCH * PATCH, PATCH))
    local = max(round(crop * LOCAL / GLOBAL / PATCH) * PATCH, PATCH)
    batch = 2 ** int(np.log2(np.clip(summary.images // 8, 2, 64)))
    return dict(
        in_channels=group[0],
        value_range=value_range,
        mean=[float(value) for value in mean],
        std=[float(value) for value in std],
        global_crop=crop,
        local_crop=local,
        batch_size=batch,
        others={
            f'{channels} x {dtype}': part.images
            for (channels, dtype), part in summary.pixels.items()
            if (channels, dtype) != group
        },
    )


def main_group(summary: Summary) -> Group:
    """Channels and type that most images have."""
    return max(summary.pixels, key=lambda group: summary.pixels[group].images)


def suggested_range(pixels: Pixels) -> tuple[float, float]:
    """Values that should become 0 and 255.

    Of 16 bits, the full scale of as few bits as hold the values; if that would leave most of it empty, the value that
    one pixel in a thousand lies beyond. Of other types, the least and the largest value.
    """
    low, high = float(pixels.moments.low.min()), float(pixels.moments.high.max())
    if pixels.histogram is None:
        return low, high if high > low else low + 1
    total = pixels.histogram.sum(axis=0)
    share = np.cumsum(total) / total.sum()
    used = float(np.searchsorted(share, 1 - TAIL))
    full = float(2 ** max(int(high).bit_length(), 8) - 1)
    return 0.0, full if used > full / 4 else max(used, 1.0)


def scaled(pixels: Pixels, value_range: tuple[float, float] | None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the values that the range makes 0..255, ``(C,)`` each."""
    if value_range is None:
        return pixels.moments.mean, pixels.moments.std
    low, high = value_range
    scale = 255 / (high - low)
    if pixels.histogram is None:
        return (pixels.moments.mean - low) * scale, pixels.moments.std * scale
    levels = (np.arange(pixels.histogram.shape[1]) - low).clip(0, high - low) * scale
    count = pixels.histogram.sum(axis=1)
    mean = pixels.histogram @ levels / count
    return mean, np.sqrt((pixels.histogram * np.square(levels - mean[:, None])).sum(axis=1) / count)


def near_black(summary: Summary) -> list[tuple[int, str]]:
    """Near-black images, those of more than 8 bits by the range that is suggested for their kind."""
    found = list(summary.odd['near-black'])
    for group, values in summary.brightness.items():
        low, high = suggested_range(summary.pixels[group])
        limit = low + DARK / 255 * (high - low)
        text = f'99 of 100 pixels are at most {{:g}} of {high:g}'
        found += [(number, text.format(bright)) for number, bright in values if bright < limit]
    return sorted(found)


def config_text(found: dict[str, Any]) -> str:
    """The suggestions as lines of a config."""
    if not found:
        return '# no image can be used'
    numbers = {name: '[' + ', '.join(f'{value:.4f}' for value in found[name]) + ']' for name in ('mean', 'std')}
    size, channels = found['global_crop'], found['in_channels']
    lines = [f'# crops of {size} and {found["local_crop"]} pixels, batches of {found["batch_size"]}']
    if found['value_range'] is None:
        lines.append(f'data_preprocessor = dict(mean={numbers["mean"]}, std={numbers["std"]}, to_rgb=True)')
    else:
        lines += [f'in_channels = {channels}', f'value_range = {found["value_range"]}']
        lines += [f'mean = {numbers["mean"]}', f'std = {numbers["std"]}']
    return '\n'.join(lines)
