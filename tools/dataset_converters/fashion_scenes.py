"""Compose scenes of many objects from Fashion-MNIST or digits, in the layouts of COCO 2017 and ADE20K.

OUT can then serve as the folder `data/` of mmdet's and mmseg's configs.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from poa_mm.datasets.scenes import NAMES, SOURCES, write_scenes
from poa_mm.evaluation.progress import show_progress
from poa_mm.mistakes import add_debug, run_tool


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument('out', metavar='OUT', help='folder to write, new or empty')
    parser.add_argument(
        '--source',
        choices=SOURCES,
        default='fashion_mnist',
        help='Fashion-MNIST is in the folder that POA_FMNIST names, or data/fashion_mnist; digits need no data',
    )
    parser.add_argument('--train', type=int, default=4000, metavar='N', help='number of training scenes')
    parser.add_argument('--val', type=int, default=500, metavar='N', help='number of validation scenes')
    parser.add_argument('--size', type=int, nargs='+', default=[128], metavar='PX', help='side, or height and width')
    parser.add_argument(
        '--objects', type=int, nargs=2, default=[3, 8], metavar=('MIN', 'MAX'), help='number of objects per scene'
    )
    parser.add_argument(
        '--scale',
        type=float,
        nargs=2,
        default=[0.15, 0.5],
        metavar=('MIN', 'MAX'),
        help='longer side of an object, in shorter sides of the scene',
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of all random choices')
    parser.add_argument(
        '--names', choices=NAMES, default='own', help="categories: the source's ten, or the 80 of COCO (library)"
    )
    add_debug(parser)
    return parser.parse_args()


def compose(args: dict[str, Any]) -> None:
    size = args.pop('size')
    args['data_root'] = os.environ.get('POA_FMNIST', 'data/fashion_mnist')
    with show_progress('scenes', args['train'] + args['val']) as progress:
        write_scenes(args.pop('out'), size=size * 2 if len(size) == 1 else size, progress=progress, **args)


def main() -> None:
    args = vars(parse_args())
    if code := run_tool('fashion_scenes', compose, args, debug=args.pop('debug')):
        sys.exit(code)


if __name__ == '__main__':
    main()
