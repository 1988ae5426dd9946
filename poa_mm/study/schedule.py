"""Working off the whole study, several pieces of work side by side."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import timedelta
from pathlib import Path

from mmengine.config import Config
from rich.console import Console

from poa_mm.mistakes import UserError

from .evidence import Entry, add_evidence
from .rows import DATA, NEEDS_ALONE, ROWS, USUAL_ROWS, Unit, plan, space_of
from .work import Worker, finished

SECONDS = 'wall_seconds.json'  # how long each piece of work took, for the estimate of what is left


class WorkError(UserError, RuntimeError):
    """A piece of work has failed; says how its output ended."""


def run_study(
    work_dir: Path,
    evidence: Path,
    rows: Sequence[str] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    data: Sequence[str] | None = None,
    jobs: int = 1,
    configs: Mapping[str, Path] | None = None,
    do: Callable[[Unit], list[Entry]] | None = None,
) -> list[Entry]:
    """Do what is not done yet; write each result into ``evidence`` as it comes.

    Args:
        work_dir: Folder of checkpoints, logs and results.
        evidence: The json file.
        rows: Keys of ``ROWS``. Default: all, on some data sets the main ones (``USUAL_ROWS``).
        seeds: Default: 0, 1, 2.
        data: Keys of ``configs``. Default: all.
        jobs: Pieces of work at the same time, each a process of one thread. Default: 1.
        configs: Config of each data set. Default: those of ``DATA``.
        do: Does a piece of work. Default: in a process of its own.

    Returns:
        Entries of all that was asked for.

    Raises:
        ValueError: If a row or data set is unknown or ``jobs`` is below 1.
        WorkError: If a piece of work failed; those that run are finished first.
    """
    if jobs < 1:
        raise ValueError(f'jobs {jobs} is below 1')
    configs = dict(configs or DATA)
    chosen = list(configs if data is None else data)
    spaces = {name: space_of(Config.fromfile(path)) for name, path in configs.items() if name in chosen}
    units = [
        unit
        for name in chosen
        for unit in plan(spaces, USUAL_ROWS.get(name, ROWS) if rows is None else rows, seeds, [name])
    ]
    do = do or (lambda unit: in_process(unit, work_dir))
    console = Console(stderr=True)
    found = {unit: entries for unit in units if (entries := finished(unit, work_dir)) is not None}
    for entries in found.values():
        add_evidence(evidence, entries)
    left = [unit for unit in units if unit not in found]
    console.print(f'{len(units)} pieces of work, {len(found)} done already')
    _work_off(left, found, do, jobs, work_dir, evidence, console)
    return [entry for unit in units for entry in found[unit]]


def _work_off(
    left: list[Unit],
    found: dict[Unit, list[Entry]],
    do: Callable[[Unit], list[Entry]],
    jobs: int,
    work_dir: Path,
    evidence: Path,
    console: Console,
) -> None:
    total = len(left) + len(found)
    durations = _read_durations(work_dir)
    running: dict[Future, tuple[Unit, float]] = {}
    failure: Exception | None = None
    with ThreadPoolExecutor(jobs) as pool:
        while running or (left and failure is None):
            while left and failure is None and len(running) < jobs:
                unit = _next(left, running)
                if unit is None:
                    break
                left.remove(unit)
                running[pool.submit(do, unit)] = unit, time.time()
                console.print(
                    f'{len(found)}/{total} {unit.data} {unit} begins, {_estimate(durations, left, running, jobs)}'
                )
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                unit, start = running.pop(future)
                try:
                    found[unit] = future.result()
                except Exception as error:  # whatever it was, the others' results count
                    failure = failure or error
                    continue
                durations[f'{unit.data}/{unit.row}/{unit.subnet}'] = time.time() - start
                Path(work_dir).mkdir(parents=True, exist_ok=True)
                (Path(work_dir) / SECONDS).write_text(json.dumps(durations, indent=2))
                add_evidence(evidence, found[unit])
                scores = {entry.subnet: entry.knn for entry in found[unit]}
                console.print(f'{len(found)}/{total} {unit.data} {unit} is done, k-NN {scores}')
    if failure is not None:
        raise failure


def _next(left: Sequence[Unit], running: Mapping[Future, tuple[Unit, float]]) -> Unit | None:
    """The first one that does not wait for what is running: some rows start from a network of another."""
    busy = {(unit.data, unit.row, unit.seed) for unit, _ in running.values()}
    for unit in left:
        if ROWS[unit.row].start not in NEEDS_ALONE or (unit.data, 'alone', unit.seed) not in busy:
            return unit
    return None


def _read_durations(work_dir: Path) -> dict[str, float]:
    path = Path(work_dir) / SECONDS
    return json.loads(path.read_text()) if path.exists() else {}


def _estimate(
    durations: Mapping[str, float], left: Sequence[Unit], running: Mapping[Future, tuple[Unit, float]], jobs: int
) -> str:
    """How long all that is left will take; a piece of work takes as long as the last one of its kind did."""
    expected = [durations.get(f'{unit.data}/{unit.row}/{unit.subnet}') for unit in left]
    expected += [
        None if (usual := durations.get(f'{unit.data}/{unit.row}/{unit.subnet}')) is None
        else max(usual - (time.time() - start), 0)
        for unit, start in running.values()
    ]  # fmt: skip
    known = [seconds for seconds in expected if seconds is not None]
    if not known:
        return f'{len(left)} more to begin'
    total = sum(known) * len(expected) / len(known) / jobs
    return f'{len(left)} more to begin, about {timedelta(seconds=round(total))} left'


def in_process(unit: Unit, work_dir: Path) -> list[Entry]:
    """Do a piece of work in a process of its own, with one thread; its output goes to ``FOLDER/log``.

    Raises:
        WorkError: If it failed, with the end of its output.
    """
    folder = unit.folder(Path(work_dir))
    folder.mkdir(parents=True, exist_ok=True)
    root = Path(__file__).parents[2]
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': f'{root}{os.pathsep}{os.environ.get("PYTHONPATH", "")}'}
    what = [unit.data, unit.row, str(unit.seed), unit.subnet or '']
    with (folder / 'log').open('a') as log:
        command = [sys.executable, '-m', 'poa_mm.study.schedule', str(work_dir), *what]
        code = subprocess.call(command, stdout=log, stderr=subprocess.STDOUT, env=env)
    entries = finished(unit, work_dir)
    if code or entries is None:
        tail = '\n'.join((folder / 'log').read_text(errors='replace').splitlines()[-10:])
        raise WorkError(f'{unit.data} {unit} failed; {folder / "log"} ends with\n{tail}')
    return entries


if __name__ == '__main__':
    import torch

    torch.set_num_threads(1)
    _, folder, name, row, seed, subnet = sys.argv
    Worker(Path(folder)).do(Unit(name, row, int(seed), subnet or None))
