"""Scores of subnets for the eye: a table, a heat map, and a file for the next program."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from poa_mm.elastic import Subnet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

Results = Mapping[str, Mapping[str, float]]


def save_report(results: Results, out_dir: str | Path) -> tuple[Path, Path]:
    """Write ``knn.json`` and ``knn.png``, a heat map over width and depth, with a panel for each patch size.

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
    json_path = write_whole(out_dir / 'knn.json', lambda path: path.write_text(text, encoding='utf-8'))
    figure = draw_heat_map(results)
    png_path = write_whole(out_dir / 'knn.png', lambda path: figure.savefig(path, format='png', dpi=150))
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
    """Accuracy in percent over depth (right) and width (up); pairs that were not scored stay empty.

    Where patches have several sizes, each has a panel of its own. Where the depths of two stages vary, each width has
    one, with one depth over the other.
    """
    # Figure by itself and not pyplot: no display, no global state.
    from matplotlib.figure import Figure

    panels, row_label, column_label = _panels(results)
    keys = [key for cells in panels.values() for key in cells]
    rows, columns = (sorted(set(sizes)) for sizes in zip(*keys))
    accuracies = [100 * score['accuracy'] for score in results.values()]

    inches = (max(0.58 * len(columns) + 2.2, 5.4), max(len(panels) * (0.42 * len(rows) + 1) + 0.5, 3.2))
    figure = Figure(figsize=inches, layout='constrained')
    figure.suptitle(f'k-NN accuracy by subnet, best of k = {", ".join(_ks(results))}')
    all_axes = figure.subplots(len(panels), squeeze=False)[:, 0]
    for axes, (title, cells) in zip(all_axes, panels.items()):
        axes.set_title(title)
        axes.set_ylabel(row_label)
        axes.set_xlabel(column_label)
        image = _draw_cells(axes, cells, rows, columns, (min(accuracies), max(accuracies)))
    bar = figure.colorbar(image, ax=all_axes, label='top-1 accuracy (%)', pad=0.02)
    bar.outline.set_visible(False)
    return figure


def _panels(results: Results) -> tuple[dict[str, dict[tuple, float]], str, str]:
    """Accuracies by row and column of each panel, by its title; what rows and columns are."""
    accuracies = {Subnet.parse(name): 100 * score['accuracy'] for name, score in results.items()}
    depths = {subnet.depth for subnet in accuracies}
    stages = [] if any(isinstance(depth, int) for depth in depths) else list(zip(*depths))
    varying = [index for index, sizes in enumerate(stages) if len(set(sizes)) > 1]
    has_patches = any(subnet.patch is not None for subnet in accuracies)
    panels: dict[str, dict[tuple, float]] = {}
    for subnet, value in sorted(accuracies.items()):
        title = [f'width {subnet.width}'] if len(varying) == 2 else []
        if has_patches:
            title.append('native patch size' if subnet.patch is None else f'patch size {subnet.patch}')
        key = tuple(subnet.depth[stage] for stage in varying) if len(varying) == 2 else (subnet.width, subnet.depth)
        panels.setdefault(', '.join(title), {})[key] = value
    if len(varying) != 2:
        return panels, 'width', 'depth'
    return panels, *(f'depth of stage {stage + 1}' for stage in varying)


def _draw_cells(
    axes: Axes, cells: Mapping[tuple, float], rows: Sequence, columns: Sequence, limits: tuple[float, float]
) -> AxesImage:
    grid = np.array([[cells.get((row, column), np.nan) for column in columns] for row in rows])
    image = axes.imshow(grid, origin='lower', cmap='viridis', aspect='auto', vmin=limits[0], vmax=limits[1])
    for (row, column), value in np.ndenumerate(grid):
        if np.isfinite(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            colour = 'white' if dark else 'black'
            axes.text(column, row, f'{value:.1f}', ha='center', va='center', fontsize=9, color=colour)
    labels = [size if isinstance(size, int) else '-'.join(map(str, size)) for size in columns]
    axes.set_xticks(range(len(columns)), labels, rotation=90 if max(len(str(label)) for label in labels) > 4 else 0)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    # Thin lines between the cells.
    axes.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    axes.grid(which='minor', color='white', linewidth=1.5)
    axes.tick_params(which='minor', length=0)
    return image


def _ks(results: Results) -> list[str]:
    return [key for key in next(iter(results.values())) if key.isdigit()]


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Have ``write`` write a file beside its place, then move it there: it is never seen in part."""
    part = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path
