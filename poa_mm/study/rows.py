"""The rows of the study and the pieces of work that they consist of.

A pre-training with other options is one more entry of :data:`ROWS`. Another way to come by a network is a new value of
``Row.start`` with a method of that name, after an underscore, in :class:`~poa_mm.study.work.Worker`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS

from poa_mm.elastic import Subnet, SubnetSpace

CONFIGS = Path(__file__).parents[2] / 'configs' / 'poa'
DATA = {'fashion_mnist': CONFIGS / 'swint_fmnist.py', 'emoji': CONFIGS / 'swint_emoji.py'}
ALONE = {'model.weight_es1': 0, 'model.weight_es2': 0}


@dataclass(frozen=True)
class Row:
    """What is trained and scored, once for each seed.

    Args:
        about: For the table of the report.
        options: What overrides the config of the pre-training, by dotted keys. Default: nothing.
        start: What is scored: ``'supernet'``, one run of POA; ``'alone'``, a run for each of three sizes whose space is
            that size; ``'slices'`` of the largest one of row ``alone``; ``'warm'``, one run of POA that starts from
            that one; ``'supervised'`` and ``'random'``, three sizes trained with all labels and not at all;
            ``'pixels'``. Default: ``'supernet'``.
        share: Length of the pre-training, as a share of what the config says. Default: 1.
        lr: Learning rate, as a share of what the config says. Default: 1.
        order: Of ``'slices'`` and ``'warm'``: what the units that small subnets keep are chosen by, as of
            :func:`~poa_mm.deploy.warm_start.warm_start`. Default: ``'none'``, as they are.
        every_subnet: Score all subnets, not three sizes only. Default: False.
        few_labels: Fine-tune three sizes with few labels. Default: False.
        seeded: Whether seeds make a difference. Default: True.
    """

    about: str
    options: Mapping[str, Any] = field(default_factory=dict)
    start: str = 'supernet'
    share: float = 1.0
    lr: float = 1.0
    order: str = 'none'
    every_subnet: bool = False
    few_labels: bool = False
    seeded: bool = True


NEEDS_ALONE = ('slices', 'warm')  # what starts from the largest network of row `alone`
# Of a short run from weights that exist: the heads first, an average of fewer steps. Lengths are those of a whole run.
WARM = {'recipe.momentum': (0.98, 0.995), 'recipe.heads_iters': 200, 'recipe.freeze_iters': 0}
WARM_LR = 0.5
TEACHERS: dict[str, dict[str, Any]] = {'': {}, '_frozen': {'model.frozen_teacher': 'source'}}
ORDERS = {'': 'none', '_ordered': 'taylor'}

# The rows of docs/warm_start.md; it shares `poa` and `slices` with docs/evidence.md.
WARM_ROWS: dict[str, Row] = {
    'slices_ordered': Row('its slices, ordered', start='slices', order='taylor'),
    'poa_20': Row('POA from scratch, 20 % of the iterations', share=0.2),
    **{
        f'warm_{percent}{order}{teacher}': Row(
            f'warm start, {percent} % of the iterations, {"" if order else "not "}ordered, '
            f'{"frozen" if teacher else "EMA"} teacher',
            {**WARM, **options},
            start='warm',
            share=percent / 100,
            lr=WARM_LR,
            order=ORDERS[order],
        )
        for percent in (5, 20)
        for order in ORDERS
        for teacher, options in TEACHERS.items()
    },
}
ROWS: dict[str, Row] = {
    'pixels': Row('raw pixels', start='pixels', seeded=False),
    'untrained': Row('random weights', start='random', few_labels=True),
    'poa': Row('POA, one run', every_subnet=True, few_labels=True),
    'alone': Row('pre-trained alone, a run each', ALONE, start='alone', few_labels=True),
    'slices': Row('slices of the largest one pre-trained alone', start='slices', every_subnet=True),
    'no_es2': Row('POA without L_ES2', {'model.weight_es2': 0}),
    'no_es1': Row('POA without L_ES1', {'model.weight_es1': 0}),
    'one_head': Row('POA with one head', {'model.head.num_prototypes': 'last'}),
    'lambda_0.5': Row(
        'POA with lambda 0.5', {'model.weight_is': 0.5, 'model.weight_es1': 0.5, 'model.weight_es2': 0.5}
    ),
    'batch_16': Row('POA, batches of 16 images', {'recipe.batch_size': 16}),
    # With the queue, Sinkhorn-Knopp sees as many class tokens as with batches of 128.
    'batch_16_queue': Row('POA, batches of 16 and a queue', {'recipe.batch_size': 16, 'model.queue': 2 * (128 - 16)}),
    'batch_128': Row('POA, batches of 128', {'recipe.batch_size': 128}),
    'supervised': Row('trained with all labels', start='supervised'),
    **WARM_ROWS,
}


# What is run on a data set if nobody says; all rows on any other.
USUAL_ROWS = {'emoji': ('pixels', 'untrained', 'poa', 'alone', 'slices')}


@dataclass(frozen=True)
class Unit:
    """One piece of work, which one process does.

    Args:
        data: Key of :data:`DATA`.
        row: Key of :data:`ROWS`.
        seed: Seed.
        subnet: The size that is trained, for rows with a training for each; else None.
    """

    data: str
    row: str
    seed: int
    subnet: str | None = None

    def __str__(self) -> str:
        return '-'.join(str(part) for part in (self.row, self.subnet, f'seed{self.seed}') if part)

    def folder(self, work_dir: Path) -> Path:
        """Where its files are."""
        return work_dir / self.data / str(self)


def three_sizes(space: SubnetSpace) -> list[Subnet]:
    """The smallest, a middle and the largest subnet."""
    widths, depths = space.widths, space.depths
    middle = Subnet(widths[len(widths) // 2], depths[len(depths) // 2])
    return list(dict.fromkeys([space.smallest, middle, space.largest]))


def space_of(cfg: Config) -> SubnetSpace:
    """The subnets of a config's backbone."""
    return MODELS.build(dict(cfg.model.backbone)).space


def plan(
    spaces: Mapping[str, SubnetSpace], rows: Iterable[str], seeds: Sequence[int], data: Iterable[str]
) -> list[Unit]:
    """All that ``rows`` need, in an order that can be worked off: seed by seed, what others need first.

    Args:
        spaces: Of each data set.
        rows: Keys of :data:`ROWS`.
        seeds: Seeds.
        data: Keys of ``spaces``.

    Raises:
        ValueError: If a row or data set is unknown.
    """
    rows, data = list(rows), list(data)
    for names, known in ((rows, ROWS), (data, spaces)):
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(f'{unknown[0]!r} is not one of {", ".join(known)}')
    units: dict[Unit, None] = {}
    for name in data:
        for number, seed in enumerate(seeds):
            for row in (row for row in ROWS if row in rows):
                if number and not ROWS[row].seeded:
                    continue
                for needed in ('alone',) if ROWS[row].start in NEEDS_ALONE else ():
                    units[Unit(name, needed, seed, str(spaces[name].largest))] = None
                units |= dict.fromkeys(_units(name, row, seed, spaces[name]))
    return list(units)


def _units(data: str, row: str, seed: int, space: SubnetSpace) -> list[Unit]:
    if ROWS[row].start == 'pixels':
        return [Unit(data, row, 0)]
    if ROWS[row].start in ('alone', 'random', 'supervised'):
        return [Unit(data, row, seed, str(subnet)) for subnet in three_sizes(space)]
    return [Unit(data, row, seed)]
