"""How well the latency of subnets that were not timed is predicted: the spread of a scorecard and its held-out fifth.

Weights are random, for they do not matter here; no data is needed. On a quiet machine, or bound to a quiet core:

    taskset -c 0 python benchmarks/bench_scorecard.py configs/poa/vitl_in1k.py --threads 1
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS

import poa_mm.models  # noqa: F401
from poa_mm.evaluation.latency import describe_machine
from poa_mm.evaluation.measurement import Measurement, MeasureSettings
from poa_mm.evaluation.unfinished import Unfinished


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of a supernet')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--batch', type=int, nargs='+', default=[1])
    parser.add_argument('--threads', type=int)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument(
        '--cpu-time',
        action='store_true',
        help='count time of the processor, not time that passes: on a machine with other work, of one thread',
    )
    parser.add_argument('--work-dir', type=Path, help='interrupted, go on from here (default: nowhere)')
    parser.add_argument('--json', type=Path)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    start = time.monotonic()
    torch.manual_seed(0)
    backbone = MODELS.build(Config.fromfile(args.config).model.backbone)
    backbone.init_weights()
    backbone.eval()
    settings = MeasureSettings(
        devices=(args.device,), batches=tuple(args.batch), threads=args.threads, rounds=args.rounds
    )
    settings.check()
    if args.cpu_time and (args.device != 'cpu' or args.threads != 1):
        raise SystemExit('--cpu-time is for --device cpu --threads 1: it adds up what all threads take')
    clock = time.process_time if args.cpu_time else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        header = dict(config=args.config, settings=repr(settings), cpu_time=args.cpu_time)
        unfinished = Unfinished(args.work_dir or Path(folder), header)
        try:
            found = Measurement(backbone, settings, unfinished, clock=clock).run()
        finally:
            unfinished.write()
    for condition in map(str, settings.conditions):
        costs = [cost[condition] for cost in found['costs'].values()]
        measured = [cost for cost in costs if cost['kind'] == 'measured']
        print(
            f'{condition}: {len(measured)} of {len(costs)} subnets timed, median latency from '
            f'{min(cost["median_ms"] for cost in measured):.4g} to {max(cost["median_ms"] for cost in measured):.4g} ms'
        )
        for name, fit in found['fits'].get(condition, {}).items():
            print(
                f'  {name}: {fit["count"]} held out, error {100 * fit["median_error"]:.2f} % in the median, '
                f"{100 * fit['max_error']:.2f} % at most, Kendall's tau {fit['kendall_tau']:.4f}"
            )
    seconds = time.monotonic() - start
    machine = describe_machine(settings.devices)
    print(f'{seconds / 60:.1f} minutes; {machine}, {settings.threads or torch.get_num_threads()} threads')
    if args.json:
        args.json.write_text(json.dumps(dict(**found, seconds=seconds, machine=machine), indent=1) + '\n')


if __name__ == '__main__':
    main()
