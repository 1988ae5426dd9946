"""A scorecard as files: for programs (JSON, CSV), for a page of text (Markdown) and for the eye (HTML)."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from .report import write_whole

FORMAT = 1
NAME = 'scorecard'
PAGE = Path(__file__).with_name('page')
BUSY = 1.5  # 90th percentile over median, from which on timings are said to scatter
PREDICTED = '~'  # before a number that was not measured


class ScorecardError(ValueError):
    """A file is not the scorecard that it should be; says what was found."""


def write_scorecard(card: Mapping[str, Any], out_dir: str | os.PathLike) -> list[Path]:
    """Write ``scorecard.json``, ``.csv``, ``.md`` and ``.html``; none is ever there in part.

    Args:
        card: What :func:`~poa_mm.evaluation.make_scorecard` returns.
        out_dir: Made if it is missing.

    Returns:
        Paths of the files, that of the JSON first.
    """
    out_dir = Path(out_dir)
    texts = {  # the page last: of all files, it is what a person opens
        'json': json.dumps(card, indent=1) + '\n',
        'csv': as_csv(card),
        'md': as_markdown(card),
        'html': as_html(card),
    }
    out_dir.mkdir(parents=True, exist_ok=True)
    return [
        write_whole(out_dir / f'{NAME}.{suffix}', lambda path: path.write_text(text, encoding='utf-8'))  # noqa: B023
        for suffix, text in texts.items()
    ]


def read_scorecard(path: str | os.PathLike) -> dict[str, Any]:
    """Read a ``scorecard.json``.

    Raises:
        ScorecardError: If there is no such file, or it holds anything else.
    """
    try:
        card = json.loads(Path(path).read_text(encoding='utf-8'))
    except OSError as error:
        raise ScorecardError(f'{path}: cannot be read: {error.strerror}') from error
    except ValueError as error:
        raise ScorecardError(f'{path}: expected the JSON of a scorecard, found another file') from error
    if not isinstance(card, dict) or card.get('format') != FORMAT:
        found = card.get('format') if isinstance(card, dict) else None
        raise ScorecardError(f'{path}: expected a scorecard of format {FORMAT}, found format {found!r}')
    try:
        _check(card)
    except (KeyError, TypeError, AttributeError) as error:
        raise ScorecardError(f'{path}: the scorecard is not complete: {error!r}') from error
    return card


def _check(card: Mapping[str, Any]) -> None:
    """Look at all that a reader will look at."""
    if not card['conditions'] or not card['protocols'] or not card['subnets']:
        raise KeyError('conditions, protocols or subnets')
    for key in ('checkpoint', 'checkpoint_sha256'):
        if not isinstance(card[key], str):
            raise TypeError(f'{key} is {card[key]!r}')
    for row in card['subnets']:
        numbers = [row['params'], row['file_bytes'], row['macs'], *(row['scores'][name] for name in card['protocols'])]
        for condition in card['conditions']:
            cost = row['costs'][condition]
            numbers += [cost['median_ms'], cost['images_per_s'], cost['peak_memory'] or 0]
            if cost['kind'] not in ('measured', 'predicted'):
                raise TypeError(f'kind {cost["kind"]!r}')
        wrong = [number for number in numbers if type(number) not in (int, float) or not math.isfinite(number)]
        if wrong:
            raise TypeError(f'{wrong[0]!r} of {row["subnet"]} is not a number')


def as_csv(card: Mapping[str, Any]) -> str:
    """One line for each subnet, in plain units: bytes, milliseconds, shares."""
    rows = []
    for entry in card['subnets']:
        row = {key: entry[key] for key in ('subnet', 'params', 'file_bytes', 'macs', 'flops')}
        row |= {f'score_{name}': score for name, score in entry['scores'].items()}
        for condition, cost in entry['costs'].items():
            row |= {f'{condition}_{key}': value for key, value in cost.items()}
        rows.append(row)
    file = io.StringIO()
    writer = csv.DictWriter(file, rows[0], lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def as_markdown(card: Mapping[str, Any]) -> str:
    """A table for people; ``~`` stands before what is predicted."""
    lines = [f'# Scorecard of {card["checkpoint"]}', '', *(f'- {line}' for line in describe(card)), '']
    head = ['subnet', 'params (M)', 'file (MB)', 'GMACs', *(f'{name} (%)' for name in card['protocols'])]
    for condition in card['conditions']:
        head += [f'{condition}: median (ms)', 'p90 (ms)', 'images/s', 'peak memory (MB)']
    lines += [_line(head), _line(['---'] + ['---:'] * (len(head) - 1))]
    for entry in card['subnets']:
        cells = [', '.join([entry['subnet'], *entry['aliases']])]
        cells += [_short(entry[key] / scale) for key, scale in (('params', 1e6), ('file_bytes', 1e6), ('macs', 1e9))]
        cells += [f'{100 * entry["scores"][name]:.2f}' for name in card['protocols']]
        for condition in card['conditions']:
            cost = entry['costs'][condition]
            mark = PREDICTED if cost['kind'] == 'predicted' else ''
            memory = None if cost['peak_memory'] is None else cost['peak_memory'] / 1e6
            numbers = (cost['median_ms'], cost['p90_ms'], cost['images_per_s'], memory)
            cells += ['-' if number is None else f'{mark}{_short(number)}' for number in numbers]
        lines.append(_line(cells))
    return '\n'.join(lines) + '\n'


def describe(card: Mapping[str, Any]) -> list[str]:
    """Where and how a scorecard was made, a line for each thing."""
    machine = ', '.join(f'{key} {value}' for key, value in card['machine'].items())
    lines = [
        f'{card["family"]}, {len(card["subnets"])} subnets, images of {"x".join(map(str, card["image_size"]))} pixels',
        f'{card["space"]}',
        f'{machine}, {card["threads"]} thread{"s" if card["threads"] > 1 else ""}, {card["made"]}',
        f'checkpoint SHA-256 {card["checkpoint_sha256"]}',
        '1 GMAC is 10^9 multiply-adds; FLOPs, in the JSON and the CSV, are twice as many',
    ]
    lines += [f'peak memory of {name}: {text}' for name, text in card['memory'].items()]
    for condition in card['conditions']:
        lines += _scatter(card, condition)
        kinds = [entry['costs'][condition]['kind'] for entry in card['subnets']]
        measured = kinds.count('measured')
        if condition not in card['fits']:
            lines.append(f'{condition}: all {measured} subnets measured')
            continue
        lines.append(
            f'{condition}: {measured} subnets measured, {len(kinds) - measured} predicted, marked {PREDICTED}; '
            f'{_error(card["fits"][condition]["latency"])}'
        )
    return lines


def _scatter(card: Mapping[str, Any], condition: str) -> list[str]:
    """What to say of timings that differ much from call to call."""
    costs = [entry['costs'][condition] for entry in card['subnets']]
    ratio = median(cost['p90_ms'] / cost['median_ms'] for cost in costs if cost['p90_ms'] is not None)
    if ratio < BUSY:
        return []
    return [
        f'{condition}: the 90th percentile is {ratio:.1f} times the median: the machine had other work, and these are '
        'the times of a busy machine; measure again when it is quiet, or with more rounds'
    ]


def _error(fit: Mapping[str, Any]) -> str:
    tau = '' if fit['kendall_tau'] is None else f", Kendall's tau {fit['kendall_tau']:.3f}"
    return (
        f'latency of {fit["count"]} held-out subnets predicted with an error of {100 * fit["median_error"]:.1f} % '
        f'in the median and {100 * fit["max_error"]:.1f} % at most{tau}'
    )


def as_html(card: Mapping[str, Any]) -> str:
    """One page that needs nothing else, not even a network."""
    # "</script>" in a name would end the data, whatever quotes are around it.
    data = json.dumps(card).replace('<', '\\u003c')
    text = (PAGE / 'page.html').read_text(encoding='utf-8')
    for mark, content in (
        ('/* style */', (PAGE / 'page.css').read_text(encoding='utf-8')),
        ('/* script */', (PAGE / 'page.js').read_text(encoding='utf-8')),
        ('/* data */', data),
        ('<!-- about -->', ''.join(f'<li>{_escaped(line)}</li>' for line in describe(card))),
    ):
        text = text.replace(mark, content, 1)
    return text


def _escaped(text: str) -> str:
    return text.replace('&', '&amp;').replace('<', '&lt;')


def _short(number: float) -> str:
    """Three digits that count, without an exponent."""
    return f'{number:.0f}' if number >= 100 else f'{number:.3g}'


def _line(cells: Sequence[str]) -> str:
    return f'| {" | ".join(cells)} |'
