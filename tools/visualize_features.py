"""Show what subnets see in images: their patch features as colours (PCA) and the attention of their class token."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('checkpoint', help='checkpoint of a pre-training run')
    parser.add_argument('images', nargs='+', metavar='image', help='image file; each gets a row')
    parser.add_argument(
        '--subnets',
        nargs='+',
        metavar='SUBNET',
        help='such as 384x12 or small; each gets two columns (default: the smallest and the largest)',
    )
    parser.add_argument(
        '--networks', nargs='+', default=[], metavar='CONFIG', help='configs of extracted networks to show beside them'
    )
    parser.add_argument(
        '--image-size', type=int, metavar='PIXELS', help='a multiple of the patch (default: that of the pre-training)'
    )
    parser.add_argument('-o', '--out', default='features.png', metavar='PNG', help='(default: %(default)s)')
    parser.add_argument('--debug', action='store_true', help='show where in the code an error comes from')
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    from poa_mm.evaluation.feature_maps import read_network, save_feature_maps, subnet_networks

    networks = subnet_networks(args.checkpoint, args.subnets) + [read_network(path) for path in args.networks]
    print('wrote', save_feature_maps(networks, args.images, args.out, args.image_size))


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    from poa_mm.mistakes import run_tool

    return run_tool('visualize_features', run, args, debug=args.debug)


if __name__ == '__main__':
    sys.exit(main())
