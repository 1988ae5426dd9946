"""Scores of subnets for the eye: a table, a heat map, and a file for the next program."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Results = Mapping[str, Mapping[str, float]]


def save_report(results: Results, out_dir: str | Path) -> tuple[Path, Path]:
    """Write ``knn.json`` and ``knn.png``, a heat map over width and depth.

    Neither is ever there in part: each is written beside its place and then moved.

    Args:
        results: What :func:`poa_mm.evaluation.evaluate_knn` returns.
        out_dir: Made if it is not there.

    Returns:
        Paths of the two files.

    Raises:
        ValueError: If there are no results.
    """
    if not results:
        raise ValueError('no results to report')
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=2) + '\n'
    json_path = _write(out_dir / 'knn.json', lambda path: path.write_text(text, encoding='utf-8'))
    figure = draw_heat_map(results)
    png_path = _write(out_dir / 'knn.png', lambda path: figure.savefig(path, format='png', dpi=150))
    return json_path, png_path


def print_table(results: Results) -> None:
    """Print accuracies in percent, a row for each subnet, the counted one in bold."""
    from rich.console import Console
    from rich.table import Table

    ks = _ks(results)
    table = Table('subnet', title='k-NN top-1 accuracy (%)')
    for k in ks:
        table.add_column(f'k = {k}', justify='right')
    for name, score in results.items():
        cells = {k: f'{100 * score[k]:.2f}' for k in ks}
        best = str(score['k'])
        cells[best] = f'[bold]{cells[best]}[/]'
        table.add_row(name, *cells.values())
    Console().print(table)


def draw_heat_map(results: Results) -> Figure:
    """Accuracy in percent over depth (right) and width (up); pairs that were not scored stay empty."""
    # Figure by itself and not pyplot: no display, no global state.
    from matplotlib.figure import Figure

    sizes = {name: tuple(name.split('x')) for name in results}
    widths = sorted({width for width, _ in sizes.values()}, key=int)
    depths = sorted({depth for _, depth in sizes.values()}, key=lambda depth: [int(n) for n in depth.split('-')])
    grid = np.full((len(widths), len(depths)), np.nan)
    for name, (width, depth) in sizes.items():
        grid[widths.index(width), depths.index(depth)] = 100 * results[name]['accuracy']

    inches = (max(0.58 * len(depths) + 2.2, 5.4), max(0.42 * len(widths) + 1.5, 3.2))
    figure = Figure(figsize=inches, layout='constrained')
    axes = figure.add_subplot()
    image = axes.imshow(grid, origin='lower', cmap='viridis', aspect='auto')
    bar = figure.colorbar(image, ax=axes, label='top-1 accuracy (%)', pad=0.02)
    bar.outline.set_visible(False)
    _label_axes(axes, widths, depths)
    for (row, column), value in np.ndenumerate(grid):
        if np.isfinite(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            colour = 'white' if dark else 'black'
            axes.text(column, row, f'{value:.1f}', ha='center', va='center', fontsize=9, color=colour)
    axes.set_title(f'k-NN accuracy by subnet, best of k = {", ".join(_ks(results))}')
    return figure


def _label_axes(axes: Axes, widths: list[str], depths: list[str]) -> None:
    axes.set_xlabel('depth')
    axes.set_ylabel('width')
    axes.set_xticks(range(len(depths)), depths, rotation=90 if max(map(len, depths)) > 4 else 0)
    axes.set_yticks(range(len(widths)), widths)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    # Thin lines between the cells.
    axes.set_xticks(np.arange(len(depths) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(widths) + 1) - 0.5, minor=True)
    axes.grid(which='minor', color='white', linewidth=1.5)
    axes.tick_params(which='minor', length=0)


def _ks(results: Results) -> list[str]:
    return [key for key in next(iter(results.values())) if key.isdigit()]


def _write(path: Path, write: Callable[[Path], object]) -> Path:
    part = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path
