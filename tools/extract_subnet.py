"""Extract subnets of a pre-trained checkpoint, as weights and configs of stock mmpretrain networks."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('checkpoint', help='checkpoint of a pre-training run')
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        '--subnet',
        action='append',
        metavar='WxD[pP]',
        help="'384x12', '384x12p32' or a name such as 'small'; may be repeated",
    )
    what.add_argument('--all', action='store_true', help='extract every subnet')
    what.add_argument('--list', action='store_true', help='show the subnets and write nothing')
    parser.add_argument('-o', '--out-dir', metavar='DIR', help='folder to write to')
    parser.add_argument(
        '--format', choices=('safetensors', 'pth'), default='safetensors', help='of the weights (default: %(default)s)'
    )
    parser.add_argument(
        '--for',
        dest='libraries',
        action='append',
        default=[],
        choices=('mmdet', 'mmseg', 'mmpretrain'),
        help='write a config, too, that fine-tunes in this library; may be repeated',
    )
    parser.add_argument('--no-verify', action='store_true', help='do not compare with the supernet')
    parser.add_argument('--debug', action='store_true', help='show where in the code an error comes from')
    args = parser.parse_args(argv)
    if not args.list and not args.out_dir:
        parser.error('-o DIR is needed')
    return args


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*row)
    Console(markup=False).print(table)  # names may hold brackets


def run(args: argparse.Namespace) -> None:
    from poa_mm.deploy.extract import extract_subnets, list_subnets

    if args.list:
        rows = [
            (str(row.subnet), ', '.join(row.aliases), f'{row.params / 1e6:.3g}', f'{row.flops / 2e9:.3g}')
            for row in list_subnets(args.checkpoint)
        ]
        print_table(args.checkpoint, ('subnet', 'name', 'params (M)', 'GMACs'), rows)
        return

    from rich.console import Console
    from rich.progress import track

    entries = extract_subnets(
        args.checkpoint,
        None if args.all else args.subnet,
        args.out_dir,
        format=args.format,
        verify=not args.no_verify,
        libraries=args.libraries,
        progress=lambda subnets: track(subnets, 'extracting', console=Console(stderr=True)),
    )
    rows = [
        (
            entry['subnet'],
            entry['file'],
            f'{entry["params"] / 1e6:.3g}',
            f'{entry["flops"] / 2e9:.3g}',
            'not verified' if entry['max_abs_diff'] is None else f'{entry["max_abs_diff"]:.1e}',
        )
        for entry in entries
    ]
    print_table(args.out_dir, ('subnet', 'file', 'params (M)', 'GMACs', 'max difference'), rows)
    for config in entries[0]['configs'][1:]:
        print(f'ready: tools/dist_train.sh {shlex.quote(os.path.join(args.out_dir, config))} GPUS')


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    from poa_mm.mistakes import run_tool

    return run_tool('extract_subnet', run, args, debug=args.debug)


if __name__ == '__main__':
    sys.exit(main())
