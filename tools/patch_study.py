"""Is one supernet with patches of several sizes as good as one for each? On Fashion-MNIST, on a CPU.

    POA_FMNIST=/path/to/fashion_mnist python tools/patch_study.py --seeds 0 1

Trains the supernet of `configs/poa/vitt_fmnist_patches.py` and one for each of its patch sizes, for as many iterations,
scores every subnet by k-NN and prints a table. Killed, it goes on where it was. Runs take 2 to 8 minutes of one core
each, eight of them; seeds can run side by side, each with a command of its own.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from poa_mm.mistakes import add_debug, run_tool
from poa_mm.study.patch_sizes import as_markdown, compare_patch_sizes


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1], metavar='SEED', help='default: 0 1')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/patch_study'), help='default: %(default)s')
    add_debug(parser)
    return parser.parse_args()


def study(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)  # so that the same seed gives the same numbers
    runs = compare_patch_sizes(args.work_dir, args.seeds)
    table = as_markdown(runs)
    (args.work_dir / 'table.md').write_text(table, encoding='utf-8')
    print(table)


def main() -> int:
    args = parse_args()
    return run_tool('patch_study', study, args, debug=args.debug)


if __name__ == '__main__':
    sys.exit(main())
