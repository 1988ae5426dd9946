"""The report on a set of images: JSON for programs, one page of HTML for people."""

from __future__ import annotations

import base64
import html
import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..sources import ImageSource
from .record import examine
from .suggest import config_text, near_black, suggested_range, suggestions
from .summary import Summary

LISTED = 1000  # images of each kind that the JSON names; the count is of all
SHOWN = 12  # thumbnails of each kind
THUMBNAIL = 96  # pixels
KINDS = {
    'empty': 'Files without content',
    'truncated': 'Truncated files',
    'too large': 'Images with too many pixels',
    'unreadable': 'Files that cannot be decoded',
    'single colour': 'Images of a single colour',
    'near-black': 'Near-black images',
    'duplicates': 'Files that are the same, byte for byte',
    'near-duplicates': 'Images that look alike',
}


def build_report(source: ImageSource, summary: Summary) -> dict[str, Any]:
    """All that is known, as plain data."""
    odd = dict(summary.odd, **{'near-black': near_black(summary)})
    report: dict[str, Any] = dict(
        images=len(source),
        looked_at=summary.images,
        left_out=dict(source.left_out),
        suffixes=_sorted(summary.suffixes),
        channels=_sorted(summary.channels),
        bits=_sorted(summary.bits),
        modes=_sorted(summary.modes),
        shorter_side=summary.size_histogram(),
        transparent=summary.transparent,
        turned_by_exif=_sorted(summary.orientations),
        odd={
            kind: dict(
                number=len(entries),
                images=[dict(name=source.name(number), reason=reason) for number, reason in entries[:LISTED]],
            )
            for kind, entries in odd.items()
        },
    )
    for kind, groups in (('duplicates', summary.duplicates()), ('near-duplicates', summary.near_duplicates())):
        report['odd'][kind] = dict(
            number=sum(len(group) - 1 for group in groups),
            images=[[source.name(number) for number in group] for group in groups[:LISTED]],
        )
    if summary.pixels:
        report['pixels'] = {
            f'{channels} x {dtype}': _pixels(part) for (channels, dtype), part in sorted(summary.pixels.items())
        }
    report['suggestions'] = suggestions(summary)
    return report


def _sorted(counter: dict[Any, int]) -> dict[str, int]:
    return {str(key): number for key, number in sorted(counter.items(), key=lambda item: -item[1])}


def _pixels(part: Any) -> dict[str, Any]:
    moments = part.moments
    values = dict(mean=moments.mean, std=moments.std, low=moments.low, high=moments.high)
    return dict(images=part.images, **{name: [float(value) for value in numbers] for name, numbers in values.items()})


def write_report(source: ImageSource, summary: Summary, folder: str | os.PathLike, name: str = 'images') -> list[Path]:
    """Write ``NAME.json`` and ``NAME.html``; both appear whole, the page last.

    Args:
        source: The images.
        summary: What was found.
        folder: Where the files go; made if it is missing.
        name: Of the files. Default: 'images'.
    """
    report = build_report(source, summary)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f'{name}.json', folder / f'{name}.html']
    contents = [json.dumps(report, indent=1, allow_nan=False), page(source, summary, report)]
    temporaries = [path.with_name(f'.{path.name}.tmp') for path in paths]
    try:
        for temporary, content in zip(temporaries, contents):
            temporary.write_text(content, errors='surrogateescape')
        for temporary, path in zip(temporaries, paths):
            os.replace(temporary, path)
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)
    return paths


# --- the page --------------------------------------------------------------------------------
STYLE = """
body{font:14px/1.4 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}
table{border-collapse:collapse;display:inline-table;vertical-align:top;margin:0 2em 1em 0}
td,th{padding:.1em .6em;text-align:left;border-bottom:1px solid #ddd}td:last-child{text-align:right}
figure{display:inline-block;width:130px;margin:4px;vertical-align:top;font-size:11px;overflow-wrap:anywhere}
img{max-width:96px;border:1px solid #ccc}pre{background:#f4f4f4;padding:1em;overflow:auto}
"""


def page(source: ImageSource, summary: Summary, report: dict[str, Any]) -> str:
    """The report as one page of HTML that needs no other file."""
    tables = ''.join(
        _table(title, report[key])
        for title, key in {
            'suffix': 'suffixes',
            'shorter side': 'shorter_side',
            'channels': 'channels',
            'bits': 'bits',
            'colours': 'modes',
            'turned by EXIF': 'turned_by_exif',
            'left out': 'left_out',
        }.items()
    )
    parts = [
        '<!doctype html><meta charset="utf-8"><title>images</title>',
        f'<style>{STYLE}</style><h1>{report["looked_at"]:,} of {report["images"]:,} images</h1>',
        tables,
        f'<p>{report["transparent"]:,} images are transparent.</p>',
        f'<h2>Suggested settings</h2><pre>{html.escape(config_text(report["suggestions"]))}</pre>',
        *(_kind(source, summary, report, kind) for kind in KINDS),
    ]
    return '\n'.join(parts) + '\n'


def _table(title: str, counts: dict[str, int]) -> str:
    rows = ''.join(f'<tr><td>{html.escape(key)}<td>{number:,}' for key, number in counts.items())
    return f'<table><tr><th>{title}<th>images{rows}</table>' if rows else ''


def _kind(source: ImageSource, summary: Summary, report: dict[str, Any], kind: str) -> str:
    found = report['odd'][kind]
    if not found['number']:
        return ''
    if 'duplicates' in kind:
        groups = summary.duplicates() if kind == 'duplicates' else summary.near_duplicates()
        shown = [(group[0], ' = '.join(map(source.key, group))) for group in groups[:SHOWN]]
    else:
        entries = near_black(summary) if kind == 'near-black' else summary.odd[kind]
        shown = [(number, f'{source.key(number)}: {reason}') for number, reason in entries[:SHOWN]]
    figures = ''.join(
        f'<figure>{_thumbnail(source, summary, number)}<figcaption>{html.escape(text)}</figcaption></figure>'
        for number, text in shown
    )
    return f'<h2>{KINDS[kind]}: {found["number"]:,}</h2>{figures}'


def _thumbnail(source: ImageSource, summary: Summary, number: int) -> str:
    """A small picture of an image, or nothing."""
    try:
        pixels = examine(source.read(number), source.key(number)).pixels
    except OSError:
        pixels = None
    if pixels is None:
        return ''
    if pixels.dtype != np.uint8:
        low, high = suggested_range(summary.pixels[(pixels.shape[2], str(pixels.dtype))])
        pixels = ((np.nan_to_num(pixels.astype(np.float32)) - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)
    pixels = pixels[..., :3] if pixels.shape[2] >= 3 else np.repeat(pixels[..., :1], 3, axis=2)
    scale = THUMBNAIL / max(pixels.shape[:2])
    size = [max(round(side * scale), 1) for side in pixels.shape[1::-1]]
    small = cv2.resize(np.ascontiguousarray(pixels[..., ::-1]), size, interpolation=cv2.INTER_AREA)
    encoded = base64.b64encode(cv2.imencode('.jpg', small)[1]).decode()
    return f'<img src="data:image/jpeg;base64,{encoded}">'


def lines(report: dict[str, Any]) -> list[str]:
    """The report in a few lines for the terminal."""
    found = report['suggestions']
    odd = {kind: entry['number'] for kind, entry in report['odd'].items() if entry['number']}
    return [
        f'{report["looked_at"]:,} of {report["images"]:,} images; left out: {report["left_out"] or "nothing"}',
        f'suffixes {report["suffixes"]}, channels {report["channels"]}, bits {report["bits"]}',
        f'odd: {odd or "none"}; transparent {report["transparent"]:,}, turned by EXIF {report["turned_by_exif"] or 0}',
        *config_text(found).splitlines(),
    ]
