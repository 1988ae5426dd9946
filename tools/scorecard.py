"""What every subnet of a supernet costs on this machine, and what it scores: table, JSON, and a page to look at.

Interrupted, the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from poa_mm.engine.launch import read_config
from poa_mm.engine.options import add_config_options
from poa_mm.mistakes import add_debug, run_tool

READS = ('model', 'knn', 'data_preprocessor', 'default_scope', 'custom_imports')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help="config file with the entries 'model' and 'knn'")
    parser.add_argument('checkpoint', help='checkpoint of the pre-training')
    parser.add_argument('-o', '--out-dir', metavar='DIR', required=True, help='folder to write to')
    parser.add_argument('--runtime', nargs='+', default=['torch'], metavar='NAME', help='torch, onnxruntime or both')
    parser.add_argument('--device', nargs='+', default=['cpu'], metavar='NAME', help='cpu, cuda or both')
    parser.add_argument('--batch', nargs='+', type=int, default=[1], metavar='N', help='images at once (default: 1)')
    parser.add_argument('--threads', type=int, metavar='N', help='of the processor (default: as many as torch uses)')
    parser.add_argument('--protocol', nargs='+', default=['knn'], metavar='NAME', help='scores: knn, linear or both')
    parser.add_argument('--measure-all', action='store_true', help='time every subnet and predict none')
    parser.add_argument('--rounds', type=int, default=5, metavar='N', help='turns of each subnet (default: 5)')
    add_config_options(parser)
    add_debug(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    from mmengine.registry import init_default_scope

    from poa_mm.evaluation.measurement import MeasureSettings
    from poa_mm.evaluation.scorecard import make_scorecard
    from poa_mm.evaluation.scorecard_files import describe

    cfg = read_config(args.config, args.cfg_options, reads=READS)
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    settings = MeasureSettings(
        runtimes=tuple(args.runtime),
        devices=tuple(args.device),
        batches=tuple(args.batch),
        threads=args.threads,
        rounds=args.rounds,
        measure_all=args.measure_all,
    )
    settings.check()
    write_onnx = None
    if 'onnxruntime' in settings.runtimes:
        from poa_mm.deploy.export.program_writer import ProgramWriter

        write_onnx = ProgramWriter()
    card = make_scorecard(cfg, args.checkpoint, args.out_dir, settings, args.protocol, write_onnx)
    for line in describe(card):
        print(line)
    print(f'open {Path(args.out_dir, "scorecard.html")}; choose with tools/select_subnet.py')


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    return run_tool('scorecard', run, args, debug=args.debug, interrupted='interrupted; the same command goes on')


if __name__ == '__main__':
    sys.exit(main())
