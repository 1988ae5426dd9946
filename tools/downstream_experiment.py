"""Is a subnet of POA a better start than random weights? Detection or segmentation of Fashion-MNIST scenes, on a CPU.

    POA_FMNIST=/path/to/fashion_mnist python tools/downstream_experiment.py detection
    POA_FMNIST=/path/to/fashion_mnist python tools/downstream_experiment.py segmentation

Everything that is missing is made: the supernet that POA trains on single items without their labels
(`configs/poa/*_fmnist_rgb.py`), two extracted subnets, and the scenes. Then each subnet is fine-tuned on the scenes,
from its extracted weights and from scratch, for the same number of iterations with every seed. Writes `TASK.json` and
`TASK.png`, score over iterations, to the work dir. What was done already is not done again: an interrupted experiment
goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from mmengine.config import Config
from rich.console import Console
from rich.table import Table

from poa_mm.engine.work_dir import WorkDir
from poa_mm.mistakes import UserError, add_debug, run_tool

ROOT = Path(__file__).parents[1]
STARTS = ('poa', 'scratch')


class Task(NamedTuple):
    """A downstream task.

    Args:
        pretraining: Name of the config of POA.
        subnets: The smallest and the largest that are tried.
        config: Path of a subnet's config below the checkout.
        metrics: Names of the scores in the logs by the names in the report; the first one is drawn.
        max_score: What the best possible score is in the logs.
        scratch: Options of `train.py` that give the backbone the random weights of the stock class.
    """

    pretraining: str
    subnets: tuple[str, str]
    config: str
    metrics: dict[str, str]
    max_score: float
    scratch: tuple[str, ...]


TASKS = {
    'detection': Task(
        'resnet_fmnist_rgb',
        ('8x1-1-1-1', '16x1-2-3-1'),
        'configs/detection/cascade-mask-rcnn_poa-resnet-{subnet}_fpn_scenes.py',
        {'box AP': 'coco/bbox_mAP', 'mask AP': 'coco/segm_mAP'},
        max_score=1,
        # None would not be mmpretrain's start for a ResNet: it leaves out the Kaiming initialisation.
        scratch=('init_cfg._delete_=True', 'init_cfg.type=Kaiming', 'init_cfg.layer=Conv2d'),
    ),
    'segmentation': Task(
        'vitt_fmnist_rgb',
        ('48x4', '96x6'),
        'configs/segmentation/upernet_poa-vit-{subnet}-p8_scenes.py',
        {'mIoU': 'mIoU'},
        max_score=100,
        scratch=('init_cfg=None',),
    ),
}


class Run(NamedTuple):
    """One fine-tuning."""

    subnet: str
    start: str
    seed: int

    def __str__(self) -> str:
        return f'{self.subnet}-{self.start}-seed{self.seed}'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('task', choices=TASKS)
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1], help='default: 0 1')
    parser.add_argument('--jobs', type=int, default=1, help='fine-tunings at the same time (default: 1)')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/downstream'), help='default: %(default)s')
    add_debug(parser)
    return parser.parse_args()


def call(args: argparse.Namespace, name: str, tool: str, *options: str | Path) -> None:
    """Run one of the tools with its output in ``WORK_DIR/NAME.log``; the end of it is shown if it fails."""
    log = args.work_dir / f'{name}.log'
    log.parent.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, 'PYTHONPATH': f'{ROOT}{os.pathsep}{os.environ.get("PYTHONPATH", "")}'}
    with log.open('w') as file:
        command = [sys.executable, ROOT / 'tools' / tool, *options]
        code = subprocess.call(command, stdout=file, stderr=subprocess.STDOUT, env=env)
    if code:
        last = next((line for line in reversed(log.read_text().splitlines()) if line.strip()), 'nothing')
        raise UserError(f'{tool} failed; {log} ends with: {last}')


def prepare(args: argparse.Namespace, task: Task, console: Console) -> None:
    """Make scenes, supernet and extracted subnets, as far as they are missing."""
    scenes = Path(Config.fromfile(ROOT / task.config.format(subnet=task.subnets[0])).scenes)
    if not scenes.exists():
        console.print(f'composing {scenes}')
        call(args, 'scenes', 'dataset_converters/fashion_scenes.py', scenes)
    folder = args.work_dir / task.pretraining
    if (folder / 'subnets' / 'manifest.json').exists():
        return
    pretraining = ROOT / 'configs' / 'poa' / f'{task.pretraining}.py'
    checkpoint = folder / f'iter_{Config.fromfile(pretraining).train_cfg.max_iters}.pth'
    if not checkpoint.exists():
        console.print(f'pre-training; its log is {folder}/train.log')
        call(args, f'{task.pretraining}/train', 'train.py', pretraining, '--work-dir', folder, '--resume')
    choice = [word for subnet in task.subnets for word in ('--subnet', subnet)]
    call(args, f'{task.pretraining}/subnets', 'extract_subnet.py', checkpoint, *choice, '-o', folder / 'subnets')


def fine_tune(task: Task, run: Run, args: argparse.Namespace) -> list[dict[str, float]]:
    """Train and evaluate; the scores of each evaluation, with its ``step``, a percentage each."""
    work_dir = args.work_dir / args.task / str(run)
    result = work_dir / 'scores.json'
    if not result.exists():
        weights = args.work_dir / task.pretraining / 'subnets' / f'poa_{run.subnet}.safetensors'
        start = {'poa': (f'init_cfg.checkpoint={weights}',), 'scratch': task.scratch}[run.start]
        options = ('--cfg-options', *(f'model.backbone.{option}' for option in start), f'randomness.seed={run.seed}')
        config = ROOT / task.config.format(subnet=run.subnet)
        call(args, f'{args.task}/{run}', 'train.py', config, '--work-dir', work_dir, *options)
        scores = list(evaluations(work_dir, task))
        result.write_text(json.dumps(scores, indent=2) + '\n')
    return json.loads(result.read_text())


def evaluations(work_dir: Path, task: Task) -> Iterable[dict[str, float]]:
    """What the newest log of a run says of its evaluations."""
    log = max(work_dir.glob('*/vis_data/scalars.json'))
    for line in map(json.loads, log.read_text().splitlines()):
        if set(task.metrics.values()) <= line.keys():
            yield {
                'step': line['step'],
                **{name: 100 * line[key] / task.max_score for name, key in task.metrics.items()},
            }


def summarise(task: Task, results: dict[Run, list[dict[str, float]]], path: Path) -> dict:
    """The content of the report, which is also written to ``path``."""
    rows = [
        {'subnet': subnet, 'start': start, **summary(task, results, subnet, start)}
        for subnet in task.subnets
        for start in STARTS
    ]
    report = {'iterations': results[next(iter(results))][-1]['step'], 'rows': rows}
    report['runs'] = {str(run): scores for run, scores in results.items()}
    path.write_text(json.dumps(report, indent=2) + '\n')
    return report


def summary(task: Task, results: dict[Run, list[dict[str, float]]], subnet: str, start: str) -> dict[str, list[float]]:
    """Final scores of one arm, one for each seed."""
    final = [scores[-1] for run, scores in results.items() if (run.subnet, run.start) == (subnet, start)]
    return {name: [round(scores[name], 2) for scores in final] for name in task.metrics}


def print_table(task: Task, report: dict) -> None:
    table = Table('subnet', 'start', *task.metrics, title=f'after {report["iterations"]} iterations, mean (each seed)')
    for row in report['rows']:
        cells = (f'{statistics.mean(row[name]):.1f} ({", ".join(map(str, row[name]))})' for name in task.metrics)
        table.add_row(row['subnet'], row['start'], *cells)
    Console().print(table)


def draw(task: Task, results: dict[Run, list[dict[str, float]]], path: Path) -> None:
    """Score over iterations: a colour for each subnet, dashed from scratch, a line for each seed."""
    name = next(iter(task.metrics))
    figure = Figure(figsize=(6.4, 4), layout='constrained')
    axes = figure.add_subplot(xlabel='iterations', ylabel=f'{name} (%)')
    for run, scores in results.items():
        style = {'color': f'C{task.subnets.index(run.subnet)}', 'linestyle': '-' if run.start == 'poa' else '--'}
        label = f'{run.subnet}, {run.start}' if run.seed == min(other.seed for other in results) else None
        steps = [0, *(score['step'] for score in scores)]
        axes.plot(steps, [0, *(score[name] for score in scores)], label=label, **style)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    axes.spines[['top', 'right']].set_visible(False)
    figure.savefig(path, dpi=150)


def experiment(args: argparse.Namespace) -> None:
    task, console = TASKS[args.task], Console(stderr=True)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    prepare(args, task, console)
    runs = [Run(subnet, start, seed) for seed in args.seeds for subnet in task.subnets for start in STARTS]
    results: dict[Run, list[dict[str, float]]] = {}
    with WorkDir(args.work_dir / args.task), ThreadPoolExecutor(args.jobs) as pool:
        for run, scores in zip(runs, pool.map(lambda run: fine_tune(task, run, args), runs)):
            results[run] = scores
            console.print(f'{len(results)} of {len(runs)}: {run} {scores[-1]}')
    report = summarise(task, results, args.work_dir / f'{args.task}.json')
    draw(task, results, args.work_dir / f'{args.task}.png')
    print_table(task, report)


def main() -> int:
    args = parse_args()
    return run_tool('downstream_experiment', experiment, args, debug=args.debug)


if __name__ == '__main__':
    sys.exit(main())
