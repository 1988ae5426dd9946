"""Make toy images with many bands, to try `configs/poa/vits_multispectral_folder.py` on.

python tools/dataset_converters/multispectral_toy.py data/toy/train
python tools/dataset_converters/multispectral_toy.py data/toy/val --images 5 --seed 1
"""

from __future__ import annotations

import argparse
import sys

from poa_mm.datasets.multispectral import write_multispectral
from poa_mm.mistakes import add_debug, run_tool


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', help='folder to write to: one folder for each of four classes')
    parser.add_argument('--images', type=int, default=20, help='of each class (default: 20)')
    parser.add_argument('--size', type=int, default=64, help='rows and columns (default: 64)')
    parser.add_argument('--seed', type=int, default=0, help='default: 0')
    add_debug(parser)
    return parser.parse_args()


def write(args: argparse.Namespace) -> None:
    paths = write_multispectral(args.out, args.images, args.size, args.seed)
    print(f'wrote {len(paths)} images to {args.out}')


def main() -> None:
    args = parse_args()
    if code := run_tool('multispectral_toy', write, args, debug=args.debug):
        sys.exit(code)


if __name__ == '__main__':
    main()
