"""What the study has found: one entry for each scored network, in a json file."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple

from poa_mm.evaluation.report import write_whole

SCORES = ('knn', 'linear', 'labels_1', 'labels_10')


@dataclass(frozen=True)
class Entry:
    """One scored network.

    Args:
        row: Row of the study, a key of :data:`~poa_mm.study.ROWS`.
        data: Data set, a key of :data:`~poa_mm.study.rows.DATA`.
        seed: Of the pre-training and of all that follows.
        subnet: Such as ``'96x4'``; None for raw pixels.
        knn: Accuracy in [0, 1] by k-nearest neighbours; None where not measured, as for all scores.
        linear: Of a linear probe on frozen features.
        labels_1: Of the whole network fine-tuned with 1 % of the labels.
        labels_10: Likewise with 10 %.
        iterations: Length of the pre-training, or of the training of a supervised network; 0 without any.
        seconds: Processor seconds of that training, all of it: subnets of one run share them. 0 without any.
        machine: Processor and number of threads.
        commit: Of the code; ends in ``+`` where files were changed.
    """

    row: str
    data: str
    seed: int
    subnet: str | None
    knn: float | None
    linear: float | None
    labels_1: float | None
    labels_10: float | None
    iterations: int
    seconds: float
    machine: str
    commit: str

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What the entry is about."""
        return self.row, self.data, self.seed, self.subnet or ''


class Summary(NamedTuple):
    """Several seeds of one score.

    Args:
        mean: Mean.
        deviation: Standard deviation of single runs (with ``n - 1``); None for one seed.
        seeds: How many there are.
    """

    mean: float
    deviation: float | None
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        """Of one value or more."""
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.mean(values), deviation, len(values))

    def percent(self) -> str:
        """Such as ``87.3 ± 0.2``, in percent."""
        spread = '' if self.deviation is None else f' ± {100 * self.deviation:.1f}'
        return f'{100 * self.mean:.1f}{spread}'


def read_evidence(path: str | os.PathLike) -> list[Entry]:
    """Entries of a file, none if there is no file.

    Raises:
        ValueError: If the file is not a list of such entries, or two are about the same network.
    """
    path = Path(path)
    if not path.exists():
        return []
    names = {field.name for field in fields(Entry)}
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{path} is not json: {error}') from error
    if not isinstance(content, list):
        raise ValueError(f'{path} holds a {type(content).__name__}, not a list of entries')
    for number, item in enumerate(content):
        found = set(item) if isinstance(item, dict) else {repr(item)[:80]}
        if found != names:
            raise ValueError(f'{path}: entry {number} has the fields {sorted(found)}, not {sorted(names)}')
        _check_scores(item, f'{path}: entry {number}')
    entries = [Entry(**item) for item in content]
    if len({entry.key for entry in entries}) < len(entries):
        raise ValueError(f'{path} holds two entries of the same row, data, seed and subnet')
    return entries


def _check_scores(item: dict, where: str) -> None:
    for name in SCORES:
        score = item[name]
        if score is not None and not (isinstance(score, (int, float)) and 0 <= score <= 1):
            raise ValueError(f'{where}: {name} {score!r} is neither null nor in [0, 1]')


def write_evidence(path: str | os.PathLike, entries: Iterable[Entry]) -> None:
    """Write ``entries`` in order, a line each; the file is never seen in part."""
    lines = [json.dumps(asdict(entry)) for entry in sorted(entries, key=lambda entry: entry.key)]
    text = '[\n  ' + ',\n  '.join(lines) + '\n]\n' if lines else '[]\n'
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_whole(Path(path), lambda part: part.write_text(text, encoding='utf-8'))


def add_evidence(path: str | os.PathLike, entries: Iterable[Entry]) -> None:
    """Add ``entries`` to a file; they take the place of what it says about the same networks."""
    merged = {entry.key: entry for entry in [*read_evidence(path), *entries]}
    write_evidence(path, merged.values())


def summarise(entries: Iterable[Entry], row: str, data: str, subnet: str | None, score: str) -> Summary | None:
    """Mean and spread over the seeds of one score of one network; None if nobody measured it."""
    values = [
        getattr(entry, score)
        for entry in entries
        if (entry.row, entry.data, entry.subnet) == (row, data, subnet) and getattr(entry, score) is not None
    ]
    return Summary.of(values) if values else None
