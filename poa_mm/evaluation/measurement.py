"""What subnets cost on this machine: some are measured, the others predicted from them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from poa_mm.elastic import Subnet, SubnetSpace
from poa_mm.models.backbones.elastic_backbone import ElasticBackbone

from .cost_model import LEVELS, AdditiveFit, HeldOut, Spread, held_out_error, spread
from .latency import Condition, summarise, time_visit, turns
from .progress import show_progress
from .runtimes import (
    DEVICES,
    RUNTIMES,
    Runtime,
    TorchRuntime,
    WriteOnnx,
    check_runtime,
    make_runtime,
    memory_of,
    processors,
)
from .unfinished import Unfinished

MAX_ERROR = 0.05  # median error of the held-out latencies, above which more subnets are timed
MIN_HELD_OUT = 5  # a median of fewer says little
ONNX_FOLDER = 'onnx.unfinished'  # gone when all is measured


@dataclass(frozen=True)
class MeasureSettings:
    """How costs are measured.

    Args:
        runtimes: ``'torch'``, ``'onnxruntime'``. Default: torch.
        devices: ``'cpu'``, ``'cuda'``. Default: the CPU.
        batches: Images at once. Default: 1.
        threads: Of the processor. Default: as many as torch uses.
        rounds: Turns that each network gets. Default: 5.
        measure_all: Time every subnet and predict none. Default: False.
    """

    runtimes: tuple[str, ...] = ('torch',)
    devices: tuple[str, ...] = ('cpu',)
    batches: tuple[int, ...] = (1,)
    threads: int | None = None
    rounds: int = 5
    measure_all: bool = False

    @property
    def conditions(self) -> list[Condition]:
        """All combinations, the first one being what a choice is made by if nothing else is said."""
        return [Condition(r, d, b) for r in self.runtimes for d in self.devices for b in self.batches]

    def check(self) -> None:
        """Check that all of it is possible on this machine.

        Raises:
            ValueError: If it is not; names the value and the valid ones.
            TypeError: If runtimes, devices or batches are not several, but one.
        """
        for name, example in dict(runtimes=('torch',), devices=('cpu',), batches=(1, 8)).items():
            if not isinstance(values := getattr(self, name), (list, tuple)):
                raise TypeError(f'{name} must be a list or a tuple, such as {example}; got {values!r}')
        for name, values, known in (('runtimes', self.runtimes, RUNTIMES), ('devices', self.devices, DEVICES)):
            if not values or len(set(values)) < len(values):
                raise ValueError(f'{name} must be some of {", ".join(known)}, each once; got {list(values)}')
        for runtime, device in {(c.runtime, c.device) for c in self.conditions}:
            check_runtime(runtime, device)
        whole = [('rounds', self.rounds), *(('batch', batch) for batch in self.batches)]
        whole += [] if self.threads is None else [('threads', self.threads)]
        for name, value in whole:
            if not isinstance(value, int) or value < 1:
                raise ValueError(f'{name} {value} is not a whole number from 1 up')
        if self.threads is not None and self.threads > (there := processors()):
            raise ValueError(f'threads {self.threads} are more than the {there} processors that are there')
        if not self.batches or len(set(self.batches)) < len(self.batches):
            raise ValueError(f'batches must be whole numbers, each once; got {list(self.batches)}')


def check_fits(backbone: ElasticBackbone, settings: MeasureSettings) -> None:
    """Check, by one call of the largest subnet with one image, that the largest batch fits into the memory.

    Args:
        backbone: The supernet, on the CPU.
        settings: How costs are measured; checked.

    Raises:
        ValueError: If it does not fit; says how much would be needed.
    """
    batch = max(settings.batches)
    if batch == 1:
        return
    image = torch.zeros(1, backbone.in_channels, *backbone.img_size)
    peak = TorchRuntime(backbone, 'cpu').peak_memory(backbone.space.largest, image)
    weights = 4 * backbone.cost(backbone.space.largest).params
    needed = weights + batch * (image.nbytes + max(peak - weights, 0))
    for device in settings.devices:
        there = memory_of(device)
        if needed > there:
            raise ValueError(
                f'batch {batch} needs about {needed / 1e9:.1f} GB with subnet {backbone.space.largest}, and the memory '
                f'of device {device!r} is {there / 1e9:.1f} GB'
            )


class Measurement:
    """Measures a supernet's subnets until the rest can be predicted.

    Args:
        backbone: The supernet, on the CPU.
        settings: How; checked.
        unfinished: Results so far.
        write_onnx: Exports a network, for onnxruntime; see :mod:`~poa_mm.evaluation.runtimes`. Default: None.
        progress: Show progress. Default: True.
        clock: Gives seconds. Default: the time that passes.
    """

    def __init__(
        self,
        backbone: ElasticBackbone,
        settings: MeasureSettings,
        unfinished: Unfinished,
        write_onnx: WriteOnnx | None = None,
        progress: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.clock = clock
        self.backbone = backbone
        self.space: SubnetSpace = backbone.space
        self.settings = settings
        self.unfinished = unfinished
        self.progress = progress
        self.threads = settings.threads or torch.get_num_threads()
        self._folder = unfinished.path.parent / ONNX_FOLDER
        if not unfinished.path.exists():  # what is there belongs to no results, and may be of another checkpoint
            shutil.rmtree(self._folder, ignore_errors=True)
        pairs = dict.fromkeys((c.runtime, c.device) for c in settings.conditions)
        self._runtimes: dict[tuple[str, str], Runtime] = {
            pair: make_runtime(*pair, backbone, folder=self._folder, write_onnx=write_onnx, threads=self.threads)
            for pair in pairs
        }
        generator = torch.Generator().manual_seed(0)
        shape = backbone.in_channels, *backbone.img_size
        self._images = {batch: torch.randn(batch, *shape, generator=generator) for batch in settings.batches}

    def run(self) -> dict[str, Any]:
        """Measure, and predict what was not.

        Returns:
            ``costs``: by subnet and condition, the numbers and whether they are ``'measured'`` or ``'predicted'``;
            ``fits``: by condition, how well held-out subnets were predicted, empty if all were measured.
        """
        with use_threads(self.threads):
            chosen, times = self._time_until_predictable()
            memory = self._measure_memory(chosen.all)
        costs: dict[str, dict[str, Any]] = {str(subnet): {} for subnet in self.space}
        fits = {}
        for condition in self.settings.conditions:
            name = str(condition)
            timings = {subnet: summarise(times[subnet][name], condition.batch) for subnet in chosen.all}
            peaks = {subnet: memory[subnet][name] for subnet in chosen.all}
            for subnet, timing in timings.items():
                costs[str(subnet)][name] = dict(kind='measured', **timing._asdict(), peak_memory=peaks[subnet])
            if not chosen.held_out:
                continue
            medians = {subnet: timing.median_ms for subnet, timing in timings.items()}
            known = {subnet: peak for subnet, peak in peaks.items() if peak is not None}
            fits[name] = dict(latency=held_out_error(medians, chosen.held_out)._asdict())
            if known:
                fits[name]['peak_memory'] = held_out_error(known, chosen.held_out)._asdict()
            latency, peak_memory = AdditiveFit(medians), AdditiveFit(known) if known else None
            for subnet in self.space:
                costs[str(subnet)].setdefault(name, _predicted(subnet, condition, latency, peak_memory))
        return dict(costs=costs, fits=fits)

    def _time_until_predictable(self) -> tuple[Spread, dict[Subnet, dict[str, list[float]]]]:
        """Time a spread, and a finer one as long as the held-out ones are predicted badly."""
        levels = LEVELS
        while len((chosen := self._spread(levels)).held_out) < MIN_HELD_OUT and chosen.held_out:
            levels = 2 * levels - 1
        number = 0
        while True:
            # All anew in each attempt, so that drift hits old and new subnets alike.
            times = self._time(chosen.all, f'timing {number}')
            errors = self._errors(chosen, times)
            if all(error.median_error <= MAX_ERROR for error in errors.values()):
                return chosen, times
            levels, number = 2 * levels - 1, number + 1
            chosen = self._spread(levels)

    def _spread(self, levels: int) -> Spread:
        return Spread(list(self.space), []) if self.settings.measure_all else spread(self.space, levels)

    def _errors(self, chosen: Spread, times: Mapping[Subnet, Mapping[str, list[float]]]) -> dict[str, HeldOut]:
        if not chosen.held_out:
            return {}
        return {
            str(condition): held_out_error(
                {subnet: summarise(times[subnet][str(condition)], condition.batch).median_ms for subnet in chosen.all},
                chosen.held_out,
            )
            for condition in self.settings.conditions
        }

    def _time(self, subnets: Sequence[Subnet], key: str) -> dict[Subnet, dict[str, list[float]]]:
        """Seconds of every call, by subnet and condition."""
        self._check_disk(subnets)
        rounds = self.settings.rounds
        title = f'timing {len(subnets)} of {len(self.space)} subnets, {rounds} times'
        with show_progress(title, rounds * len(subnets), self.progress, unit='turns') as advance:
            for index, subnet in turns(subnets, rounds):
                keys = (key, str(index), str(subnet))
                if self.unfinished.get(*keys) is None:
                    self.unfinished.put(keys, self.time_once(subnet))
                advance(1)
        found = {
            subnet: [self.unfinished.get(key, str(index), str(subnet)) for index in range(rounds)] for subnet in subnets
        }
        names = list(map(str, self.settings.conditions))
        return {
            subnet: {name: list(chain.from_iterable(visit[name] for visit in visits)) for name in names}
            for subnet, visits in found.items()
        }

    def _check_disk(self, subnets: Sequence[Subnet]) -> None:
        """The programs of onnxruntime stay on the disk until all turns are over."""
        if 'onnxruntime' not in self.settings.runtimes:
            return
        existing = next(folder for folder in self._folder.parents if folder.exists())
        free = shutil.disk_usage(existing).free
        needed = sum(
            4 * self.backbone.cost(subnet).params for subnet in subnets if not (self._folder / str(subnet)).exists()
        )
        if needed > 0.95 * free:
            raise ValueError(
                f'onnxruntime needs {needed / 1e9:.1f} GB for the networks that are timed, {existing} has '
                f'{free / 1e9:.1f} GB left'
            )

    def time_once(self, subnet: Subnet) -> dict[str, list[float]]:
        """One turn of a subnet: seconds of some calls under each condition."""
        times = {}
        for (name, device), runtime in self._runtimes.items():
            with runtime.open(subnet) as load:
                for batch, images in self._images.items():
                    times[str(Condition(name, device, batch))] = time_visit(load(images), clock=self.clock)
        return times

    def _measure_memory(self, subnets: Sequence[Subnet]) -> dict[Subnet, dict[str, int | None]]:
        """Bytes by subnet and condition."""
        with show_progress(f'memory of {len(subnets)} subnets', len(subnets), self.progress, unit='subnets') as advance:
            for subnet in subnets:
                if self.unfinished.get('memory', str(subnet)) is None:
                    peaks = {
                        str(Condition(name, device, batch)): runtime.peak_memory(subnet, images)
                        for (name, device), runtime in self._runtimes.items()
                        for batch, images in self._images.items()
                    }
                    self.unfinished.put(('memory', str(subnet)), peaks)
                advance(1)
        return {subnet: self.unfinished.get('memory', str(subnet)) for subnet in subnets}


def _predicted(
    subnet: Subnet, condition: Condition, latency: AdditiveFit, peak_memory: AdditiveFit | None
) -> dict[str, Any]:
    milliseconds = latency.predict(subnet)
    return dict(
        kind='predicted',
        median_ms=milliseconds,
        p90_ms=None,  # how it scatters is not predicted
        images_per_s=1000 * condition.batch / milliseconds,
        calls=0,
        peak_memory=None if peak_memory is None else round(peak_memory.predict(subnet)),
    )


@contextmanager
def use_threads(number: int) -> Iterator[None]:
    """Let torch use so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
