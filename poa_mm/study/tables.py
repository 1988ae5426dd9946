"""What the tables of the study are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .evidence import Entry, summarise


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def cell(entries: Sequence[Entry], row: str, data: str, subnet: str | None, score: str) -> str:
    """Mean and spread in percent; empty if nobody measured it."""
    summary = summarise(entries, row, data, subnet, score)
    return summary.percent() if summary else ''


def difference(entries: Sequence[Entry], data: str, size: str, row: str, other: str) -> str:
    """Points of k-NN by which the mean of ``row`` is above that of ``other``, with the spread of the seeds of both."""
    ours, theirs = (summarise(entries, name, data, size, 'knn') for name in (row, other))
    if ours is None or theirs is None:
        return ''
    points = 100 * (ours.mean - theirs.mean)
    if ours.deviation is None or theirs.deviation is None:
        return f'{points:+.1f}'
    return f'{points:+.1f} ± {100 * (ours.deviation**2 + theirs.deviation**2) ** 0.5:.1f}'


def minutes(entries: Sequence[Entry], row: str, data: str, subnet: str | None) -> float | None:
    """Processor minutes of the training, mean over the seeds; None if there was none."""
    seconds = {
        entry.seed: entry.seconds
        for entry in entries
        if (entry.row, entry.data) == (row, data) and subnet in (None, entry.subnet)
    }
    return sum(seconds.values()) / len(seconds) / 60 if seconds else None


def seed_table(entries: Sequence[Entry], data: str, rows: Iterable[str]) -> str:
    """What is there: seeds, iterations and commits of each row."""
    lines = []
    for row in rows:
        own = [entry for entry in entries if (entry.row, entry.data) == (row, data)]
        seeds = ', '.join(map(str, sorted({entry.seed for entry in own}))) or 'none yet'
        commits = ', '.join(sorted({entry.commit for entry in own}))
        iterations = ', '.join(sorted({f'{entry.iterations}' for entry in own}))
        lines.append([f'`{row}`', seeds, iterations, commits])
    return markdown(['row', 'seeds', 'iterations', 'commit'], lines)
