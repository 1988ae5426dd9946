"""Doing one piece of work of the study: train, score, write down."""

from __future__ import annotations

import json
import platform
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from poa_mm.checkpoint import load_teacher
from poa_mm.deploy.warm_start import warm_start
from poa_mm.elastic import Subnet
from poa_mm.evaluation.report import write_whole

from .evidence import Entry
from .pretraining import pretrain, study_config
from .rows import DATA, ROWS, Unit, space_of, three_sizes
from .scoring import SHARES, ClassFeature, CutOut, few_labels, frozen_scores, load_data, supervise

RESULT = 'entries.json'
Trained = tuple[nn.Module, int, float]  # an elastic backbone, iterations, processor seconds


class Worker:
    """Does pieces of work in this process.

    Args:
        work_dir: Folder of all files.
        configs: Config file of each data set. Default: those of :data:`~poa_mm.study.rows.DATA`.
        options: What overrides every config, by dotted keys. Default: nothing.
    """

    def __init__(
        self, work_dir: Path, configs: Mapping[str, Path] | None = None, options: Mapping[str, Any] | None = None
    ):
        self.work_dir = Path(work_dir)
        self.configs = dict(configs or DATA)
        self.options = dict(options or {})
        self._data: dict[str, Any] = {}
        self._commit = commit()  # now: files may change while it works

    def config(self, unit: Unit, subnet: Subnet | None = None) -> Config:
        """Of the pre-training of ``unit``."""
        row, folder = ROWS[unit.row], unit.folder(self.work_dir)
        options = {**row.options, **self.options}
        return study_config(self.configs[unit.data], options, unit.seed, folder, subnet, row.share, row.lr)

    def do(self, unit: Unit) -> list[Entry]:
        """Entries of a piece of work, which is done if it is not done already; what is half done is gone on with."""
        found = finished(unit, self.work_dir)
        if found is not None:
            return found
        folder = unit.folder(self.work_dir)
        folder.mkdir(parents=True, exist_ok=True)
        start = ROWS[unit.row].start
        entries = list(getattr(self, f'_{start}')(unit))
        write_entries(folder / RESULT, entries)
        return entries

    # --- what is trained and scored, by `Row.start` ------------------------------------------
    def _pixels(self, unit: Unit) -> Iterator[Entry]:
        cfg = self.config(unit)
        yield self._entry(unit, None, frozen_scores(nn.Flatten(), cfg, self._load(unit, cfg), unit.seed), 0, 0.0)

    def _supernet(self, unit: Unit) -> Iterator[Entry]:
        cfg = self.config(unit)
        trained = self._pretrained(cfg)
        yield from self._score(unit, cfg, trained, trained[0].space)

    def _alone(self, unit: Unit) -> Iterator[Entry]:
        subnet = Subnet.parse(unit.subnet)
        cfg = self.config(unit, subnet)
        yield from self._score(unit, cfg, self._pretrained(cfg), [subnet])

    def _slices(self, unit: Unit) -> Iterator[Entry]:
        """Of the largest network of row ``alone``, which has been trained already."""
        cfg = self.config(unit)
        whole, checkpoint = self._largest_alone(unit, cfg)
        if ROWS[unit.row].order == 'none':
            supernet = MODELS.build(dict(cfg.model.backbone))
            supernet.load_state_dict(load_teacher(checkpoint)[0].state_dict())
        else:
            supernet = load_teacher(self._start(unit, cfg))[0]
        yield from self._score(unit, cfg, (supernet, whole.iterations, whole.seconds), supernet.space)

    def _warm(self, unit: Unit) -> Iterator[Entry]:
        """POA from the largest network of row ``alone``; the price is that of this run."""
        cfg = self.config(unit)
        cfg.load_from = str(self._start(unit, cfg))
        trained = self._pretrained(cfg)
        yield from self._score(unit, cfg, trained, trained[0].space)

    def _random(self, unit: Unit) -> Iterator[Entry]:
        subnet = Subnet.parse(unit.subnet)
        cfg = self.config(unit, subnet)
        yield from self._score(unit, cfg, (self._fresh(cfg, unit.seed), 0, 0.0), [subnet])

    def _supervised(self, unit: Unit) -> Iterator[Entry]:
        subnet = Subnet.parse(unit.subnet)
        cfg = self.config(unit, subnet)
        data = self._load(unit, cfg)
        network = CutOut(self._fresh(cfg, unit.seed), subnet)
        start = time.process_time()
        iterations = supervise(network, cfg, data, unit.seed)
        seconds = time.process_time() - start
        yield self._entry(unit, subnet, frozen_scores(network, cfg, data, unit.seed), iterations, seconds)

    # --- parts -------------------------------------------------------------------------------
    def _largest_alone(self, unit: Unit, cfg: Config) -> tuple[Entry, Path]:
        """The largest network of row ``alone``, of the same seed, and its checkpoint."""
        largest = Unit(unit.data, 'alone', unit.seed, str(space_of(cfg).largest))
        entry = self.do(largest)[0]
        return entry, largest.folder(self.work_dir) / f'iter_{entry.iterations}.pth'

    def _start(self, unit: Unit, cfg: Config) -> Path:
        """A checkpoint to start from: that network, ordered as the row says, with new heads."""
        path = unit.folder(self.work_dir) / 'start' / 'start.pth'  # where no run looks for its own
        if not path.exists():
            _, checkpoint = self._largest_alone(unit, cfg)
            path.parent.mkdir(exist_ok=True)
            warm_start(cfg, checkpoint, path, order=ROWS[unit.row].order, seed=unit.seed)
        return path

    def _pretrained(self, cfg: Config) -> Trained:
        checkpoint, seconds = pretrain(cfg)
        return load_teacher(checkpoint)[0], cfg.train_cfg.max_iters, seconds

    @staticmethod
    def _fresh(cfg: Config, seed: int) -> nn.Module:
        """A backbone with the random weights that a pre-training begins with."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            backbone = MODELS.build(dict(cfg.model.backbone))
            backbone.init_weights()
        return backbone

    def _score(self, unit: Unit, cfg: Config, trained: Trained, subnets: Iterable[Subnet]) -> Iterator[Entry]:
        """Score subnets, each written down at once, so that it is not done again after a kill."""
        backbone, iterations, seconds = trained
        row, data = ROWS[unit.row], self._load(unit, cfg)
        sizes = three_sizes(backbone.space)
        for subnet in subnets:
            if not row.every_subnet and subnet not in sizes:
                continue
            path = unit.folder(self.work_dir) / f'scores_{subnet}.json'
            if not path.exists():
                scores = frozen_scores(ClassFeature(backbone, subnet), cfg, data, unit.seed, linear=subnet in sizes)
                if row.few_labels and subnet in sizes:
                    for name in SHARES:
                        scores[name] = few_labels(CutOut(backbone, subnet), name, cfg, data, unit.seed)
                text = json.dumps(scores)
                write_whole(path, lambda part: part.write_text(text, encoding='utf-8'))  # noqa: B023
            yield self._entry(unit, subnet, json.loads(path.read_text(encoding='utf-8')), iterations, seconds)

    def _load(self, unit: Unit, cfg: Config) -> Any:
        if unit.data not in self._data:
            self._data[unit.data] = load_data(cfg)
        return self._data[unit.data]

    def _entry(
        self, unit: Unit, subnet: Subnet | None, scores: Mapping[str, float], iterations: int, seconds: float
    ) -> Entry:
        return Entry(
            row=unit.row,
            data=unit.data,
            seed=unit.seed,
            subnet=None if subnet is None else str(subnet),
            **{name: _rounded(scores.get(name)) for name in ('knn', 'linear', 'labels_1', 'labels_10')},
            iterations=iterations,
            seconds=round(seconds, 1),
            machine=machine(),
            commit=self._commit,
        )


def finished(unit: Unit, work_dir: Path) -> list[Entry] | None:
    """Entries of a piece of work that is done; None if it is not."""
    path = unit.folder(Path(work_dir)) / RESULT
    return [Entry(**item) for item in json.loads(path.read_text(encoding='utf-8'))] if path.exists() else None


def write_entries(path: Path, entries: Sequence[Entry]) -> None:
    """The result of a piece of work, by which :func:`finished` knows that it is done."""
    text = json.dumps([vars(entry) for entry in entries], indent=2)
    write_whole(path, lambda part: part.write_text(text, encoding='utf-8'))


def _rounded(score: float | None) -> float | None:
    return None if score is None else round(score, 5)


def machine() -> str:
    """Processor and number of threads."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
        model = next(line.split(':', 1)[1].strip() for line in lines if line.startswith('model name'))
    except (OSError, StopIteration):  # not on Linux
        pass
    return f'{model}, {torch.get_num_threads()} thread{"s" * (torch.get_num_threads() > 1)}'


def commit() -> str:
    """Commit of the code; ends in ``+`` where files that git knows were changed, ``unknown`` outside a checkout."""
    folder = Path(__file__).parent
    try:
        name = subprocess.check_output(['git', 'rev-parse', '--short=10', 'HEAD'], cwd=folder, text=True, stderr=-3)
        changed = subprocess.check_output(['git', 'status', '--porcelain', '-uno'], cwd=folder, text=True, stderr=-3)
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'
    return name.strip() + ('+' if changed.strip() else '')
