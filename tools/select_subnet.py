"""Choose a subnet from a scorecard: the one with the best score within your limits.

All subnets are looked at. Prints the best, what it costs against the largest, and the runners-up. Exit code 1 if
nothing fits.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from poa_mm.mistakes import add_debug, run_tool

EXPORT = Path(__file__).with_name('export_subnet.py')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('scorecard', help='scorecard.json of tools/scorecard.py')
    parser.add_argument('--max-latency', metavar='MS', help='milliseconds, in the median')
    parser.add_argument('--max-params', metavar='N', help='parameters, such as 30M')
    parser.add_argument('--max-size', metavar='BYTES', help='size of the file of weights, such as 60MB')
    parser.add_argument('--max-memory', metavar='BYTES', help='peak memory, such as 200MB')
    parser.add_argument('--by', metavar='SCORE', help="the score that counts (default: the scorecard's first)")
    parser.add_argument(
        '--on', metavar='CONDITION', help="such as torch-cpu-b1: what was measured (default: the scorecard's first)"
    )
    parser.add_argument(
        '--verify', action='store_true', help='time the choice again, on this machine, before naming it'
    )
    parser.add_argument('--checkpoint', help='where the checkpoint is (default: where it was for the scorecard)')
    parser.add_argument(
        '--then',
        nargs=argparse.REMAINDER,
        metavar='EXPORT_ARGS',
        help='last of all: export the choice, with these arguments of tools/export_subnet.py, such as --to timm -o DIR',
    )
    add_debug(parser)
    args = parser.parse_args(argv)
    if args.then is not None and not args.then:
        parser.error('--then needs arguments of tools/export_subnet.py, such as --to timm -o DIR')
    return args


def run(args: argparse.Namespace) -> int:
    from poa_mm.evaluation.scorecard_files import read_scorecard
    from poa_mm.evaluation.selection import check_choice, choose, describe_choice, parse_limit
    from poa_mm.evaluation.verification import find_checkpoint

    given = dict(latency=args.max_latency, params=args.max_params, size=args.max_size, memory=args.max_memory)
    limits = {name: parse_limit(name, text) for name, text in given.items() if text is not None}
    card = read_scorecard(args.scorecard)
    by, condition = check_choice(card, args.by, args.on)
    choice = choose(card, limits, by, condition)
    checkpoint = find_checkpoint(card, args.checkpoint)
    if checkpoint is None and (args.verify or args.then):
        raise ValueError(
            f'{card["checkpoint"]}, the checkpoint of the scorecard, is not there; name it with --checkpoint'
        )
    if choice.ranked and args.verify:
        ranked = verified(card, checkpoint, choice.ranked, limits, condition)
        if not ranked:
            print('nothing fits any more')
            return 1
        choice = choice._replace(ranked=ranked)
    for line in describe_choice(choice, by, condition):
        print(line)
    if choice.ranked and args.then:
        subnet = choice.ranked[0]['subnet']
        sys.stdout.flush()
        return subprocess.run([sys.executable, EXPORT, checkpoint, '--subnet', subnet, *args.then]).returncode
    return 0 if choice.ranked else 1


def verified(
    card: Mapping[str, Any], checkpoint: Path, ranked: list, limits: Mapping[str, float], condition: str
) -> list[Mapping[str, Any]]:
    """The subnets from the first on that is still within the limits; says what was found of those before."""
    from poa_mm.evaluation.latency import Condition
    from poa_mm.evaluation.runtimes import check_runtime
    from poa_mm.evaluation.selection import in_unit
    from poa_mm.evaluation.verification import other_machine, verify

    runtime, device, _ = Condition.parse(condition)
    check_runtime(runtime, device)
    write_onnx = None
    if runtime == 'onnxruntime':
        from poa_mm.deploy.export.program_writer import ProgramWriter

        write_onnx = ProgramWriter()
    if differences := other_machine(card, condition):
        print(f'note: the scorecard is of another machine: {"; ".join(differences)}')
    for index, found in enumerate(verify(card, checkpoint, ranked, limits, condition, write_onnx)):
        before, now = (row['costs'][condition] for row in (found.before, found.row))
        print(
            f'timed again: {found.row["subnet"]} takes {in_unit("latency", now["median_ms"])}, '
            f'{before["kind"]} before: {in_unit("latency", before["median_ms"])}'
            f'{"" if found.fits else "; over the limit, so the next one"}'
        )
        if found.fits:
            return [found.row, *ranked[index + 1 :]]
    return []


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    return run_tool('select_subnet', run, args, debug=args.debug)


if __name__ == '__main__':
    sys.exit(main())
