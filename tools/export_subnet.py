"""Export subnets to timm, Hugging Face transformers, ONNX and torch.export; docs/export.md says what each can hold."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('checkpoint', help='checkpoint of a pre-training run, or the config of an extracted subnet')
    parser.add_argument(
        '--subnet',
        action='append',
        metavar='WxD[pP]',
        help="'384x12', '384x12p32' or a name such as 'small'; may be repeated",
    )
    parser.add_argument(
        '--to', nargs='+', required=True, metavar='FORMAT', help='one or more of timm, huggingface, onnx, torch'
    )
    parser.add_argument('-o', '--out-dir', required=True, metavar='DIR', help='folder to write to')
    parser.add_argument('--dynamic-size', action='store_true', help='onnx and torch: images of any height and width')
    parser.add_argument('--fp16', action='store_true', help='onnx: a second file in half precision')
    parser.add_argument('--int8', action='store_true', help='onnx: a further file in 8 bits')
    parser.add_argument('--config', help="config whose entry 'knn' scores the files of --fp16 and --int8")
    parser.add_argument(
        '--images', metavar='FOLDER', help="what --int8 is calibrated on (default: images of the k-NN's bank)"
    )
    parser.add_argument(
        '--tolerance',
        type=float,
        help='how much k-NN accuracy --fp16 and --int8 may lose (default: 0.01)',
    )
    parser.add_argument('--debug', action='store_true', help='show where in the code an error comes from')
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')
    logging.getLogger('torch.onnx').setLevel(logging.ERROR)  # it warns of operators that no network here has
    from rich.console import Console
    from rich.table import Table

    from poa_mm.apis import export

    entries = export(
        args.checkpoint,
        args.subnet,
        to=args.to,
        out_dir=args.out_dir,
        config=args.config,
        progress=lambda text: print(text, file=sys.stderr),
        dynamic_size=args.dynamic_size,
        fp16=args.fp16,
        int8=args.int8,
        images=args.images,
        tolerance=args.tolerance,
    )
    table = Table('subnet', 'format', 'file', 'MB', 'max difference', 'k-NN before, after', title=args.out_dir)
    for entry in entries:
        size = sum(file['bytes'] for file in entry['files'].values()) / 1e6
        score = entry.get('knn')
        table.add_row(
            entry['subnet'],
            entry['format'],
            entry['file'],
            f'{size:.3g}',
            f'{entry["max_abs_diff"]:.1e}',
            f'{score["before"]:.4f}, {score["after"]:.4f}' if score else '',
        )
    Console().print(table)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    from poa_mm.mistakes import run_tool

    return run_tool('export_subnet', run, args, debug=args.debug)


if __name__ == '__main__':
    sys.exit(main())
