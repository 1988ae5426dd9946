"""Figures of the study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from poa_mm.evaluation.report import draw_heat_map, write_whole

from .evidence import Entry, Summary, summarise
from .rows import ROWS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCORE_NAMES = {
    'knn': 'k-NN',
    'linear': 'linear probe',
    'labels_1': '1 % of the labels',
    'labels_10': '10 % of the labels',
}
ABLATIONS = ('poa', 'no_es2', 'no_es1', 'one_head', 'lambda_0.5')


def figures_of(
    entries: Sequence[Entry], data: str, params: Mapping[str, int], sizes: Sequence[str]
) -> dict[str, Figure]:
    """The figures that ``entries`` have enough for.

    Args:
        entries: Of all rows.
        data: Data set.
        params: Parameters of each subnet, the smallest first.
        sizes: The sizes that were also trained alone.

    Returns:
        By name, in the order of the page: ``params``, ``heat_map``, ``ablation``, ``labels``.
    """
    figures = {
        'params': _over_params(entries, data, params, sizes),
        'heat_map': _heat_map(entries, data),
        'ablation': _ablation(entries, data, sizes),
        'labels': _over_labels(entries, data, sizes),
    }
    return {name: figure for name, figure in figures.items() if figure is not None}


def save(figure: Figure, path: Path) -> Path:
    """Write a png file, the same bytes for the same figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_whole(path, lambda part: figure.savefig(part, format='png', dpi=120, metadata={'Software': None}))


def _axes(xlabel: str, ylabel: str, size: tuple[float, float] = (6.4, 4)) -> tuple[Figure, Axes]:
    # Figure by itself and not pyplot: no display, no global state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout='constrained')
    axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel)
    axes.spines[['top', 'right']].set_visible(False)
    return figure, axes


def axes_in_a_row(xlabel: str, ylabel: str, number: int) -> tuple[Figure, list[Axes]]:
    """Panels side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * number, 3.4), layout='constrained')
    panels = list(figure.subplots(1, number, squeeze=False)[0])
    for panel in panels:
        panel.spines[['top', 'right']].set_visible(False)
        panel.set_xlabel(xlabel, fontsize=8)
    panels[0].set_ylabel(ylabel)
    return figure, panels


def points(axes: Axes, found: Mapping[float, Summary], **style) -> None:
    """Means with the spread of the seeds as bars."""
    means = [100 * summary.mean for summary in found.values()]
    spread = [100 * (summary.deviation or 0) for summary in found.values()]
    axes.errorbar(list(found), means, spread, capsize=3, **style)


def _over_params(entries: Sequence[Entry], data: str, params: Mapping[str, int], sizes: Sequence[str]) -> Figure | None:
    """k-NN accuracy over the number of parameters."""
    figure, axes = _axes('parameters (thousands)', 'k-NN accuracy (%)')
    styles = {
        'supervised': dict(label='all labels (ceiling)', color='0.6', marker='^', linestyle='none'),
        'poa': dict(label='subnets of one POA run', color='C0', marker='o'),
        'alone': dict(label='pre-trained alone', color='C1', marker='s', linestyle='none'),
        'slices': dict(label='slices without POA', color='C2', marker='x', linestyle=':'),
        'untrained': dict(label='untrained', color='0.6', marker='v', linestyle='none'),
    }
    drawn = False
    for row, style in styles.items():
        found = {
            number / 1000: summary
            for subnet, number in params.items()
            if (summary := summarise(entries, row, data, subnet, 'knn'))
        }
        if found:
            points(axes, found, **style)
            drawn = True
    pixels = summarise(entries, 'pixels', data, None, 'knn')
    if pixels:
        axes.axhline(100 * pixels.mean, color='0.4', linestyle='--', linewidth=1, label='raw pixels')
    axes.set_xscale('log')
    axes.set_xticks([params[size] / 1000 for size in sizes], [f'{size}\n{params[size] / 1000:.0f}' for size in sizes])
    axes.set_xticks([], minor=True)
    axes.legend(frameon=False, fontsize=8)
    return figure if drawn else None


def _heat_map(entries: Sequence[Entry], data: str) -> Figure | None:
    """k-NN accuracy of every subnet of POA, mean over the seeds."""
    subnets = sorted({entry.subnet for entry in entries if entry.row == 'poa' and entry.data == data})
    found = {subnet: summarise(entries, 'poa', data, subnet, 'knn') for subnet in subnets}
    results = {subnet: {'accuracy': summary.mean} for subnet, summary in found.items() if summary}
    if not results:
        return None
    figure = draw_heat_map(results)
    figure.suptitle(f'k-NN accuracy of the subnets of POA, mean of {found[subnets[0]].seeds} seed(s)')
    return figure


def _ablation(entries: Sequence[Entry], data: str, sizes: Sequence[str]) -> Figure | None:
    """k-NN accuracy without parts of the method, a group of bars for each size."""
    rows = [row for row in ABLATIONS if any(summarise(entries, row, data, size, 'knn') for size in sizes)]
    if len(rows) < 2:
        return None
    figure, axes = _axes('', 'k-NN accuracy (%)')
    width, lowest = 0.8 / len(rows), 100.0
    for index, row in enumerate(rows):
        found = {
            place + (index - (len(rows) - 1) / 2) * width: summary
            for place, size in enumerate(sizes)
            if (summary := summarise(entries, row, data, size, 'knn'))
        }
        heights = [100 * summary.mean for summary in found.values()]
        spread = [100 * (summary.deviation or 0) for summary in found.values()]
        axes.bar(list(found), heights, width, yerr=spread, capsize=2, label=ROWS[row].about)
        lowest = min([lowest, *heights])
    axes.set_ylim(bottom=max(lowest - 3, 0))  # a gap of a few tenths would not be seen from 0
    axes.set_xticks(range(len(sizes)), sizes)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _over_labels(entries: Sequence[Entry], data: str, sizes: Sequence[str]) -> Figure | None:
    """Accuracy over the share of labels: fine-tuned from POA, from a run alone, and from random weights."""
    figure, axes = _axes('labels used (%)', 'accuracy after fine-tuning (%)')
    styles = {'poa': '-', 'alone': '--', 'untrained': ':'}
    drawn = False
    for index, size in enumerate(sizes):
        for row, line in styles.items():
            found = {
                share: summary
                for share, score in ((1, 'labels_1'), (10, 'labels_10'))
                if (summary := summarise(entries, row, data, size, score))
            }
            if found:
                label = f'{size}, {"from scratch" if row == "untrained" else ROWS[row].about}'
                points(axes, found, label=label, color=f'C{index}', linestyle=line, marker='o')
                drawn = True
    axes.set_xscale('log')
    axes.set_xticks([1, 10], ['1', '10'])
    axes.set_xticks([], minor=True)
    axes.legend(frameon=False, fontsize=8)
    return figure if drawn else None
