"""Does a start from weights that exist help? Tables and figure of docs/warm_start.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .evidence import Entry, summarise
from .figures import SCORE_NAMES, axes_in_a_row, points
from .rows import ROWS, WARM_ROWS
from .tables import cell, difference, markdown, minutes, seed_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCRATCH, SLICES = 'poa', 'slices'
ABOUT = {SCRATCH: 'POA from scratch, all iterations', SLICES: 'slices of the source, as they are'}
# Lines of the figure, and the rows on them; slices have cost nothing.
LINES = {
    'POA from scratch': ('poa_20', SCRATCH),
    'warm start, EMA teacher': (SLICES, 'warm_5', 'warm_20'),
    'warm start, frozen teacher': (SLICES, 'warm_5_frozen', 'warm_20_frozen'),
    'ordered, EMA teacher': ('slices_ordered', 'warm_5_ordered', 'warm_20_ordered'),
    'ordered, frozen teacher': ('slices_ordered', 'warm_5_ordered_frozen', 'warm_20_ordered_frozen'),
}
STYLES = ('C1o-', 'C0s-', 'C0s:', 'C2^-', 'C2^:')


def warm_tables(entries: Sequence[Entry], data: str, sizes: Sequence[str]) -> dict[str, str]:
    """The tables of one data set in Markdown, by name: two scores, the gap to POA from scratch, the seeds."""
    return {
        'warm_knn': _score_table(entries, data, sizes, 'knn'),
        'warm_linear': _score_table(entries, data, sizes, 'linear'),
        'warm_gap': _gap_table(entries, data, sizes),
        'warm_seeds': seed_table(entries, data, _rows()),
    }


def _rows() -> list[str]:
    return [SCRATCH, SLICES, *WARM_ROWS]


def _about(row: str) -> str:
    return f'`{row}`: {ABOUT.get(row, ROWS[row].about)}'


def _score_table(entries: Sequence[Entry], data: str, sizes: Sequence[str], score: str) -> str:
    lines = []
    for row in _rows():
        cells = [cell(entries, row, data, size, score) for size in sizes]
        if any(cells):
            cost = _minutes(entries, row, data)
            lines.append([_about(row), '' if cost is None else f'{cost:.1f}', *cells])
    return markdown([f'{SCORE_NAMES[score]} (%)', 'processor minutes', *sizes], lines)


def _minutes(entries: Sequence[Entry], row: str, data: str) -> float | None:
    """Of the run itself: the source is there already, and slices of it cost nothing."""
    return 0.0 if ROWS[row].start == 'slices' else minutes(entries, row, data, None)


def _gap_table(entries: Sequence[Entry], data: str, sizes: Sequence[str]) -> str:
    """Points of k-NN above POA from scratch with all iterations."""
    lines = []
    for row in _rows():
        cells = [difference(entries, data, size, row, SCRATCH) for size in sizes]
        if row != SCRATCH and any(cells):
            lines.append([f'`{row}` - `{SCRATCH}`', *cells])
    return markdown(['k-NN, points', *sizes], lines)


def warm_figure(entries: Sequence[Entry], data: str, sizes: Sequence[str]) -> Figure | None:
    """k-NN accuracy over the time of training, a panel for each size; None without a run from a warm start."""
    if not any((entry.row in WARM_ROWS, entry.data) == (True, data) for entry in entries):
        return None
    figure, panels = axes_in_a_row('training (processor minutes)', 'k-NN accuracy (%)', len(sizes))
    for panel, size in zip(panels, sizes):
        panel.set_title(size, fontsize=9)
        for (label, rows), style in zip(LINES.items(), STYLES):
            found = {
                _minutes(entries, row, data): summary
                for row in rows
                if (summary := summarise(entries, row, data, size, 'knn'))
            }
            if found:
                points(panel, found, label=label, fmt=style, markersize=4, linewidth=1)
    panels[0].legend(frameon=False, fontsize=7)
    return figure
