"""The whole of POA in minutes: pre-train on handwritten digits, extract subnets, score and time every one, export one.

Writes to the work dir: `report.json` and `knn.png` (heat map of all subnets, after training), `subnets/`
(three extracted networks, verified), `scorecard/` (what every subnet costs here: open `scorecard.html`), `exported/`
(one subnet for timm, transformers, ONNX and torch, verified), `train/` (logs, loss curves for TensorBoard, checkpoint),
`demo.log` (all that the libraries have to say).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from statistics import median

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner, find_latest_checkpoint, set_random_seed
from rich.console import Console
from rich.table import Table

from poa_mm.apis import export
from poa_mm.checkpoint import load_teacher
from poa_mm.deploy.export import possible_formats
from poa_mm.deploy.extract import extract_subnets
from poa_mm.elastic import Subnet, SubnetSpace
from poa_mm.engine.console import only_warnings
from poa_mm.engine.launch import read_config
from poa_mm.engine.options import add_config_options
from poa_mm.engine.work_dir import WorkDir
from poa_mm.evaluation import evaluate_knn, save_report
from poa_mm.evaluation.measurement import MeasureSettings
from poa_mm.evaluation.progress import show_progress
from poa_mm.evaluation.scorecard import make_scorecard
from poa_mm.evaluation.selection import choose
from poa_mm.mistakes import add_debug, run_tool

CONFIG = Path(__file__).parents[1] / 'configs' / 'poa' / 'vitt_digits.py'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config',
        nargs='?',
        type=Path,
        default=CONFIG,
        help='config that pre-trains on digits (default: configs/poa/vitt_digits.py)',
    )
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/demo/NAME_OF_THE_CONFIG')
    add_config_options(parser)
    add_debug(parser)
    return parser.parse_args()


class DemoRunner(Runner):
    """mmengine's, with a bar instead of its log on the screen."""

    def build_logger(self, *args, **kwargs) -> MMLogger:
        logger = super().build_logger(*args, **kwargs)
        only_warnings(logger)
        return logger


class ProgressHook(Hook):
    """One bar for the whole run, with loss and time left."""

    def before_train(self, runner: Runner) -> None:
        self.bar = show_progress('   pre-training', runner.max_iters, unit='steps')
        self.advance = self.bar.__enter__()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        self.advance(1, f'loss {outputs["loss"].item():.2f}')

    def after_train(self, runner: Runner) -> None:
        self.bar.__exit__(None, None, None)


def run_demo(cfg: Config, work_dir: Path) -> dict:
    """Score untrained, pre-train, extract, score; the content of `report.json`."""
    start = time.monotonic()
    for name in ('train', 'subnets', 'scorecard', 'exported'):  # of an earlier demo, whose checkpoint was another one
        shutil.rmtree(work_dir / name, ignore_errors=True)
    only_warnings(MMLogger.get_instance(f'demo-{start}', log_file=str(work_dir / 'demo.log')))
    init_default_scope(cfg.default_scope)
    say('1. scoring untrained networks of all sizes')
    before = accuracies(evaluate_knn(cfg, untrained_backbone(cfg), progress=False))

    cfg.work_dir = str(work_dir / 'train')
    say(f'2. pre-training one network of all sizes, without labels; log: {cfg.work_dir}')
    runner = DemoRunner.from_cfg(cfg)
    runner.register_hook(ProgressHook(), priority='VERY_LOW')
    runner.train()
    checkpoint = find_latest_checkpoint(cfg.work_dir)

    backbone, _ = load_teacher(checkpoint)
    say('3. cutting out three sizes, and comparing each with its subnet')
    entries = extract_subnets(checkpoint, three_sizes(backbone.space), work_dir / 'subnets')
    say(f'4. scoring and timing all {len(backbone.space)} sizes')
    results = evaluate_knn(cfg, backbone, progress=False)
    save_report(results, work_dir)
    card = make_scorecard(cfg, checkpoint, work_dir / 'scorecard', MeasureSettings(rounds=3), progress=False)
    chosen = choose(card, {'latency': middle_latency(card)}).ranked[0]['subnet']
    say(f'5. exporting {chosen}, the best of the faster half')
    exported, not_exported = export_everywhere(checkpoint, chosen, work_dir / 'exported')
    report = dict(
        knn_before=before,
        knn_after=accuracies(results),
        seconds=round(time.monotonic() - start, 1),
        extracted={entry['subnet']: entry['max_abs_diff'] for entry in entries},
        chosen=chosen,
        exported=exported,
        not_exported=not_exported,
    )
    (work_dir / 'report.json').write_text(json.dumps(report, indent=2) + '\n')
    return report


def say(text: str) -> None:
    print(text, flush=True)


def untrained_backbone(cfg: Config):
    """A network of the recipe before any training."""
    set_random_seed(cfg.randomness.seed)
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model.teacher['backbone']


def accuracies(results: dict) -> dict[str, float]:
    return {subnet: score['accuracy'] for subnet, score in results.items()}


def middle_latency(card: dict) -> float:
    """A budget in milliseconds that half of the subnets keep."""
    return median(row['costs'][card['conditions'][0]]['median_ms'] for row in card['subnets'])


def export_everywhere(checkpoint: str, subnet: str, out_dir: Path) -> tuple[dict[str, float], dict[str, str]]:
    """Export a subnet to every format that can hold it here.

    Returns:
        By format, the largest difference from the subnet; and for the others, why not.
    """
    reasons = possible_formats(checkpoint, subnet)
    formats = [format for format, reason in reasons.items() if reason is None]
    entries = export(checkpoint, subnet, to=formats, out_dir=out_dir) if formats else []
    return {entry['format']: entry['max_abs_diff'] for entry in entries}, {k: v for k, v in reasons.items() if v}


def three_sizes(space: SubnetSpace) -> list[Subnet]:
    """The smallest, a middle and the largest subnet."""
    middle = Subnet(space.widths[len(space.widths) // 2], space.depths[len(space.depths) // 2])
    return [space.smallest, middle, space.largest]


def print_report(report: dict, work_dir: Path) -> None:
    table = Table('subnet', title='k-NN accuracy on held-out digits')
    table.add_column('untrained', justify='right')
    table.add_column('pre-trained', justify='right')
    table.add_column('extracted, max difference', justify='right')
    for subnet, after in report['knn_after'].items():
        difference = report['extracted'].get(subnet)
        table.add_row(
            subnet,
            f'{report["knn_before"][subnet]:.3f}',
            f'{after:.3f}',
            '' if difference is None else f'{difference:.1e}',
        )
    Console().print(table)
    print(f'{report["chosen"]} is in {work_dir}/exported, for {", ".join(report["exported"]) or "nothing"}')
    for format, reason in report['not_exported'].items():
        print(f'not exported to {format}: {reason}')
    print(f'what every size costs here: open {work_dir}/scorecard/scorecard.html')
    print(f'{report["seconds"]:.0f} s; see {work_dir}/report.json, {work_dir}/knn.png and {work_dir}/subnets')


def demo(args: argparse.Namespace) -> None:
    cfg = read_config(args.config, args.cfg_options)
    work_dir = args.work_dir or Path('work_dirs', 'demo', args.config.stem)
    work_dir.mkdir(parents=True, exist_ok=True)
    with WorkDir(work_dir):
        print_report(run_demo(cfg, work_dir), work_dir)


def main() -> None:
    args = parse_args()
    if code := run_tool('demo', demo, args, debug=args.debug):
        sys.exit(code)


if __name__ == '__main__':
    main()
