"""Tables and figures of the study, written into docs/evidence.md and docs/warm_start.md."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmengine.config import Config
from mmengine.registry import MODELS

from poa_mm.elastic import Cost
from poa_mm.evaluation.report import write_whole

from .evidence import SCORES, Entry, read_evidence
from .figures import SCORE_NAMES, figures_of, save
from .rows import DATA, ROWS, WARM_ROWS, three_sizes
from .tables import cell, difference, markdown, minutes, seed_table
from .warm_report import warm_figure, warm_tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).parents[2]
PAGE = ROOT / 'docs' / 'evidence.md'
WARM_PAGE = ROOT / 'docs' / 'warm_start.md'
EVIDENCE = ROOT / 'docs' / 'evidence.json'
FIGURES = 'evidence'  # folder beside the json
CAPTIONS = {
    'params': 'k-NN accuracy over the number of parameters',
    'heat_map': 'k-NN accuracy of every subnet of POA',
    'ablation': 'k-NN accuracy without parts of the method',
    'labels': 'accuracy over the share of labels',
    'warm': 'k-NN accuracy over the time of training',
}
MARK = re.compile(r'(<!-- begin (?P<name>[\w.]+) -->\n).*?(<!-- end (?P=name) -->)', re.DOTALL)


def write_report(
    evidence: str | os.PathLike = EVIDENCE, page: str | os.PathLike = PAGE, configs: Mapping[str, Path] | None = None
) -> list[Path]:
    """Draw the figures of ``evidence`` beside it and write its tables between the marks of ``page``.

    A mark is ``<!-- begin NAME -->`` on a line of its own and ``<!-- end NAME -->``; NAME is one of :func:`tables`.

    Args:
        evidence: The json file.
        page: A Markdown page. What is not between marks is left alone; a page that is not there is not made.
        configs: Config of each data set. Default: those of ``DATA``.

    Returns:
        The files that were written.

    Raises:
        ValueError: If the json is not valid, or the page has a mark of an unknown name.
    """
    entries, page = read_evidence(evidence), Path(page)
    folder = Path(evidence).parent / FIGURES
    written = []
    for data, sizes, costs in _networks(entries, configs):
        figures = _figures(entries, data, sizes, costs)
        written += [save(figure, folder / f'{data}_{name}.png') for name, figure in figures.items()]
    if page.exists():
        text = page.read_text(encoding='utf-8')
        new = fill(text, parts_of(entries, configs))
        if new != text:
            write_whole(page, lambda path: path.write_text(new, encoding='utf-8'))
            written.append(page)
    return written


def parts_of(entries: Sequence[Entry], configs: Mapping[str, Path] | None = None) -> dict[str, str]:
    """Tables and links to figures of all data sets by the names of their marks, such as ``'fashion_mnist.knn'``."""
    parts = {}
    for data, sizes, costs in _networks(entries, configs):
        flops = {subnet: cost.flops for subnet, cost in costs.items()}
        parts |= {f'{data}.{name}': text for name, text in tables(entries, data, sizes, flops).items()}
        for name in CAPTIONS:
            parts[f'{data}.figure_{name}'] = ''
        for name in _figures(entries, data, sizes, costs):
            parts[f'{data}.figure_{name}'] = f'![{CAPTIONS[name]}]({FIGURES}/{data}_{name}.png)'
    return parts


def _figures(entries: Sequence[Entry], data: str, sizes: Sequence[str], costs: Mapping[str, Cost]) -> dict[str, Figure]:
    warm = warm_figure(entries, data, sizes)
    return figures_of(entries, data, _params(costs), sizes) | ({} if warm is None else {'warm': warm})


def own_rows() -> list[str]:
    """The rows of docs/evidence.md."""
    return [row for row in ROWS if row not in WARM_ROWS]


def _params(costs: Mapping[str, Cost]) -> dict[str, int]:
    """Parameters of each subnet, the smallest first."""
    return {subnet: cost.params for subnet, cost in sorted(costs.items(), key=lambda item: item[1].params)}


def _networks(
    entries: Sequence[Entry], configs: Mapping[str, Path] | None
) -> Iterator[tuple[str, list[str], dict[str, Cost]]]:
    """Of each data set: its name, the three sizes, and the cost of every subnet."""
    for data, config in (configs or DATA).items():
        backbone = MODELS.build(dict(Config.fromfile(config).model.backbone))
        costs = {str(subnet): backbone.cost(subnet) for subnet in backbone.space}
        yield data, [str(subnet) for subnet in three_sizes(backbone.space)], costs


def fill(text: str, parts: Mapping[str, str]) -> str:
    """``text`` with the ``parts`` between their marks.

    Raises:
        ValueError: If there is a mark without a part.
    """
    unknown = [match['name'] for match in MARK.finditer(text) if match['name'] not in parts]
    if unknown:
        raise ValueError(f'the page has the mark {unknown[0]!r}; there are {", ".join(parts) or "none"}')
    return MARK.sub(lambda match: f'{match[1]}{parts[match["name"]]}\n{match[3]}', text)


def tables(entries: Sequence[Entry], data: str, sizes: Sequence[str], flops: Mapping[str, int]) -> dict[str, str]:
    """The tables of one data set in Markdown, by name: a table for each score, one of all subnets, one of costs."""
    return {
        **{score: _score_table(entries, data, sizes, score) for score in SCORES},
        'subnets': _subnet_table(entries, data, flops),
        'gains': _gain_table(entries, data, sizes),
        'cost': _cost_table(entries, data, sizes, flops),
        'seeds': seed_table(entries, data, own_rows()),
        **warm_tables(entries, data, sizes),
    }


def _score_table(entries: Sequence[Entry], data: str, sizes: Sequence[str], score: str) -> str:
    """Rows of the study by sizes; raw pixels have none."""
    lines = []
    for row in own_rows():
        cells = [cell(entries, row, data, size, score) for size in sizes]
        pixels = cell(entries, row, data, None, score)
        if any(cells) or pixels:
            lines.append([f'`{row}`: {ROWS[row].about}', *(cells if any(cells) else [pixels] * len(sizes))])
    return markdown([f'{SCORE_NAMES[score]} (%)', *sizes], lines)


def _subnet_table(entries: Sequence[Entry], data: str, flops: Mapping[str, int]) -> str:
    rows = [row for row in ('poa', 'alone', 'slices') if any((e.row, e.data) == (row, data) for e in entries)]
    lines = [[subnet, *(cell(entries, row, data, subnet, 'knn') for row in rows)] for subnet in flops]
    return markdown(['subnet', *(f'`{row}`' for row in rows)], lines)


def _gain_table(entries: Sequence[Entry], data: str, sizes: Sequence[str]) -> str:
    """Differences of means in points of k-NN, with the spread of the seeds of both."""
    lines = []
    for row in own_rows():
        cells = [difference(entries, data, size, 'poa', row) for size in sizes]
        if row != 'poa' and any(cells):
            lines.append([f'`poa` - `{row}`', *cells])
    return markdown(['k-NN, points', *sizes], lines)


def _cost_table(entries: Sequence[Entry], data: str, sizes: Sequence[str], flops: Mapping[str, int]) -> str:
    """Processor minutes; what other sizes would take alone lies on a line through those that were measured."""
    poa = minutes(entries, 'poa', data, None)
    alone = {size: cost for size in sizes if (cost := minutes(entries, 'alone', data, size)) is not None}
    lines = [['one run of POA, all sizes', '' if poa is None else f'{poa:.1f}']]
    lines += [[f'{size} alone', f'{cost:.1f}'] for size, cost in alone.items()]
    if len(alone) == len(sizes):
        lines.append([f'{len(sizes)} sizes alone, sum', f'{sum(alone.values()):.1f}'])
        expected = _line({flops[size]: cost for size, cost in alone.items()})
        every = sum(alone.get(subnet, expected(number)) for subnet, number in flops.items())
        lines.append([f'all {len(flops)} sizes alone, estimated', f'{every:.1f}'])
        if poa is not None:
            lines.append(['runs alone that cost as much as one of POA, mean size', f'{poa / (every / len(flops)):.1f}'])
    return markdown(['pre-training', 'processor minutes'], lines)


def _line(points: Mapping[float, float]) -> Callable[[float], float]:
    """The straight line of least squares."""
    xs, ys = list(points), list(points.values())
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys)) / spread if spread else 0.0
    return lambda x: mean_y + slope * (x - mean_x)
