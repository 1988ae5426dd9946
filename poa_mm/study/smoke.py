"""Every kind of row of the study, end to end, in a minute: a trial of the code, not of the method."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .evidence import Entry
from .report import write_report
from .rows import CONFIGS, Unit
from .schedule import run_study
from .work import Worker

DATA = {'digits': CONFIGS / 'vitt_digits.py'}  # needs no files
FEW = dict(iterations=2, lr=1e-3, batch_size=16)
OPTIONS = {
    'recipe.max_iters': 3,
    'recipe.warmup_iters': 1,
    'recipe.ramp_iters': 1,
    'recipe.freeze_iters': 1,
    'recipe.heads_iters': 1,
    'recipe.batch_size': 16,
    'model.backbone.widths': [48, 96],
    'model.backbone.depths': [3, 6],
    'model.backbone.layer_scale_init_value': 1.0,  # or all features are one, after so short a training
    'study': dict(probe_iterations=3, labels_1=FEW, labels_10=FEW, labels_100=FEW),
}
PAGE = '\n\n'.join(
    f'<!-- begin digits.{name} -->\n<!-- end digits.{name} -->'
    for name in (
        *('knn', 'linear', 'labels_1', 'labels_10', 'subnets', 'gains', 'cost', 'seeds'),
        *('warm_knn', 'warm_linear', 'warm_gap', 'warm_seeds', 'figure_warm'),
    )
)


def smoke(folder: Path, do: Callable[[Unit], list[Entry]] | None = None) -> list[Entry]:
    """Run all rows with one seed on digits, a few iterations each, with tables and figures.

    Args:
        folder: Where everything goes: ``work``, ``evidence.json``, ``evidence.md`` and figures.
        do: Does a piece of work. Default: in this process.

    Returns:
        All entries.
    """
    folder.mkdir(parents=True, exist_ok=True)
    evidence, page, work_dir = folder / 'evidence.json', folder / 'evidence.md', folder / 'work'
    do = do or Worker(work_dir, DATA, OPTIONS).do
    entries = run_study(work_dir, evidence, seeds=[0], configs=DATA, do=do)
    page.write_text(PAGE + '\n')
    write_report(evidence, page, DATA)
    return entries
