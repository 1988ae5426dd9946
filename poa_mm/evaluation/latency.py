"""How long networks take: timed in turns, so that whatever else the machine does hits all of them alike."""

from __future__ import annotations

import platform
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch

from poa_mm.elastic import Subnet

VISIT_SECONDS = 0.1  # of calls of one network, before the next has its turn
MAX_CALLS = 20  # of one visit


class Condition(NamedTuple):
    """Under what a network is timed.

    Args:
        runtime: ``'torch'`` or ``'onnxruntime'``.
        device: ``'cpu'`` or ``'cuda'``.
        batch: Images at once.
    """

    runtime: str
    device: str
    batch: int

    def __str__(self) -> str:
        return f'{self.runtime}-{self.device}-b{self.batch}'

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read what ``str`` gives, such as ``'torch-cpu-b1'``.

        Raises:
            ValueError: If ``text`` has another form.
        """
        parts = text.split('-')
        if len(parts) != 3 or not parts[2].startswith('b') or not parts[2][1:].isdecimal():
            raise ValueError(f"{text!r} is not of the form RUNTIME-DEVICE-bBATCH, such as 'torch-cpu-b1'")
        return cls(parts[0], parts[1], int(parts[2][1:]))


class Timing(NamedTuple):
    """Latency of one batch.

    Args:
        median_ms: Median in milliseconds.
        p90_ms: Nine in ten calls are no slower.
        images_per_s: Images in a second at the median.
        calls: How many calls were timed.
    """

    median_ms: float
    p90_ms: float
    images_per_s: float
    calls: int


def time_visit(
    run: Callable[[], Any],
    seconds: float = VISIT_SECONDS,
    max_calls: int = MAX_CALLS,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Time calls of ``run`` in seconds, after one that warms up and does not count.

    Args:
        run: Returns when the result is there, of a GPU too.
        seconds: There are as many calls as the fastest of them fits into so long, two at least: whatever delays some of
            them leaves no fewer. Default: 0.1.
        max_calls: But at most so many. Default: 20.
        clock: Gives seconds. Default: the time that passes, which is what a user waits.
    """
    run()
    times: list[float] = []
    while len(times) < 2 or (len(times) * min(times) < seconds and len(times) < max_calls):
        start = clock()
        run()
        times.append(clock() - start)
    return times


def summarise(times: Sequence[float], batch: int) -> Timing:
    """Latency of some calls, in seconds, for a batch of images.

    Raises:
        ValueError: If there are none.
    """
    if not len(times):
        raise ValueError('no call was timed')
    middle = median(times)
    return Timing(1000 * middle, 1000 * float(np.quantile(times, 0.9)), batch / middle, len(times))


def turns(subnets: Iterable[Subnet], rounds: int) -> Iterator[tuple[int, Subnet]]:
    """Every subnet once in each round, in an order that is another one in each, and the same in every run."""
    subnets = list(subnets)
    for index in range(rounds):
        order = random.Random(index).sample(subnets, len(subnets))
        yield from ((index, subnet) for subnet in order)


def describe_machine(devices: Iterable[str] = ()) -> dict[str, str]:
    """What timings depend on beside the network: the processor, the GPU if it is used, and the version of torch."""
    machine = {'processor': _processor(), 'torch': torch.__version__}
    if 'cuda' in devices:
        machine['gpu'] = torch.cuda.get_device_name()
    return machine


def _processor() -> str:
    cpuinfo = Path('/proc/cpuinfo')  # of Linux; platform.processor() is empty there
    lines = cpuinfo.read_text(encoding='utf-8').splitlines() if cpuinfo.is_file() else []
    names = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()
