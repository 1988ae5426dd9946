"""Looking at all images of a source, on all cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context

import cv2
import numpy as np

from ..sources import ImageSource
from .record import Record, examine
from .summary import Summary

CHUNK = 64  # images a process looks at before it reports


def inspect(
    source: ImageSource,
    sample: int | None = None,
    near_duplicates: bool = False,
    processes: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Summary:
    """Look at the images of a source.

    Args:
        source: The images.
        sample: Look at so many of them only, the same in every call. Default: at all.
        near_duplicates: Whether to note what images look like. Default: False.
        processes: Default: one for each core that this process may use.
        progress: Called with the number of images done since its last call. Default: None.

    Raises:
        ValueError: If ``sample`` or ``processes`` is below 1.
    """
    processes = len(os.sched_getaffinity(0)) if processes is None else processes
    if (sample is not None and sample < 1) or processes < 1:
        raise ValueError(f'sample {sample} and processes {processes} must be at least 1')
    numbers = np.arange(len(source))
    if sample is not None and sample < len(source):
        numbers = np.sort(np.random.default_rng(0).choice(len(source), sample, replace=False))
    chunks = [numbers[start : start + CHUNK].tolist() for start in range(0, len(numbers), CHUNK)]
    look = partial(_look_at, source, near_duplicates=near_duplicates)
    summary = Summary()
    with ExitStack() as stack:
        each = map
        if processes > 1 and len(chunks) > 1:
            pool = ProcessPoolExecutor(processes, get_context('fork'), cv2.setNumThreads, (0,))
            each = stack.enter_context(pool).map
        for part in each(look, chunks):
            summary.merge(part)
            if progress is not None:
                progress(part.images)
    return summary


def _look_at(source: ImageSource, numbers: Sequence[int], near_duplicates: bool) -> Summary:
    summary = Summary()
    for number in numbers:
        try:
            record = examine(source.read(number), source.key(number))
        except OSError as error:
            suffix = os.path.splitext(source.key(number))[1].lower()
            record = Record(suffix, number, error=error.strerror or str(error), kind='unreadable')
        summary.add(number, record, near_duplicates)
    return summary
