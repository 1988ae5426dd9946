"""What the demo scores over several seeds: pre-trains with each, scores all sizes, and writes the numbers into README.

    python benchmarks/demo_seeds.py --seeds 0 1 2      # about 4 minutes a seed on one CPU core
    python benchmarks/demo_seeds.py --report           # README again from the JSON, no training

The numbers are kept in docs/evidence/demo.json, a seed at a time: interrupted, the same command goes on. README shows
what lies between its two comments `demo_seeds`, and nothing else of it is touched.
"""

from __future__ import annotations

import argparse
import json
import runpy
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import find_latest_checkpoint
from torch import nn

from poa_mm.checkpoint import load_teacher
from poa_mm.engine.launch import read_config
from poa_mm.engine.options import add_config_options
from poa_mm.evaluation import evaluate_knn

ROOT = Path(__file__).resolve().parents[1]
DEMO = runpy.run_path(str(ROOT / 'tools' / 'demo.py'))
JSON = ROOT / 'docs' / 'evidence' / 'demo.json'
README = ROOT / 'README.md'
BEGIN, END = '<!-- demo_seeds -->', '<!-- /demo_seeds -->'


def run_seed(seed: int, work_dir: Path, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Pre-train the demo with a seed; scores of all sizes before and after, and seconds of the training."""
    cfg = read_config(DEMO['CONFIG'], options, work_dir / f'seed_{seed}')
    cfg.randomness.seed = seed
    init_default_scope(cfg.default_scope)
    before = scores(cfg, DEMO['untrained_backbone'](cfg))
    runner = DEMO['DemoRunner'].from_cfg(cfg)
    runner.register_hook(DEMO['ProgressHook'](), priority='VERY_LOW')
    start = time.monotonic()
    runner.train()
    seconds = time.monotonic() - start
    backbone, _ = load_teacher(find_latest_checkpoint(cfg.work_dir))
    return dict(before=before, after=scores(cfg, backbone), seconds=round(seconds))


def scores(cfg: Config, backbone: nn.Module) -> dict[str, float]:
    """Accuracies of all sizes."""
    return DEMO['accuracies'](evaluate_knn(cfg, backbone, progress=False))


def describe(results: Mapping[str, Any]) -> str:
    """What README says: for each size, the lowest and the highest score of all seeds."""
    runs = results['seeds']
    seconds = [run['seconds'] for run in runs.values()]
    found = {kind: [score for run in runs.values() for score in run[kind].values()] for kind in ('before', 'after')}
    span = {kind: f'{min(values):.3f} to {max(values):.3f}' for kind, values in found.items()}
    subnets = next(iter(runs.values()))['after']
    seeds = f'{"seed" if len(runs) == 1 else "seeds"} {", ".join(runs)}'
    moves = max(_width(runs, subnet) for subnet in subnets)
    time_taken = f'{min(seconds)} to {max(seconds)} s'
    lines = [
        f'- **All sizes learn in one run.** `make demo` scores each of its {len(subnets)} sizes by k-NN on held-out',
        f'  digits: {span["after"]} after pre-training, {span["before"]} before ({seeds}).',
        f'  From seed to seed, a score moves by up to {moves:.3f}. The training takes {time_taken}',
        '  on one CPU core. Digits are easy: their pixels alone score 0.981.',
    ]
    return '\n'.join(lines)


def _width(runs: Mapping[str, Any], subnet: str) -> float:
    scores = [run['after'][subnet] for run in runs.values()]
    return max(scores) - min(scores)


def write_readme(results: Mapping[str, Any], path: Path = README) -> None:
    """Put the numbers between the two comments."""
    text = path.read_text(encoding='utf-8')
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    path.write_text(f'{text[:start]}\n{describe(results)}\n{text[end:]}', encoding='utf-8')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2], metavar='SEED', help='default: 0 1 2')
    parser.add_argument('--report', action='store_true', help='only write README again')
    parser.add_argument('--json', type=Path, default=JSON, help='default: docs/evidence/demo.json')
    parser.add_argument('--readme', type=Path, default=README, help='default: README.md')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/demo_seeds'), help='default: %(default)s')
    add_config_options(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads(args.json.read_text()) if args.json.exists() else dict(torch=torch.__version__)
    runs = results.setdefault('seeds', {})
    for seed in [] if args.report else args.seeds:
        if str(seed) not in runs:
            runs[str(seed)] = run_seed(seed, args.work_dir, args.cfg_options)
            args.json.write_text(json.dumps(results, indent=1) + '\n')
    write_readme(results, args.readme)
    print(describe(results))


if __name__ == '__main__':
    main()
