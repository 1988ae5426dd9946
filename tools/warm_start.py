"""Start POA from weights that exist: of timm, transformers, torchvision, mmpretrain, an extracted subnet, or of POA."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    from poa_mm.engine.options import add_config_options

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='pre-training config whose backbone is the network at full size')
    parser.add_argument('weights', help='.pth, .bin or .safetensors, or a folder as a library saves it')
    parser.add_argument('-o', '--out', required=True, metavar='FILE', help='checkpoint to write, for load_from')
    parser.add_argument(
        '--order',
        choices=('taylor', 'magnitude', 'none'),
        default='none',
        help='what smaller subnets keep first: units that the features of images depend on, units of large weights, '
        'or the first as they are (default: %(default)s)',
    )
    parser.add_argument(
        '--images', metavar='FOLDER', help="for --order taylor: images without labels (default: the config's knn.bank)"
    )
    parser.add_argument('--num-images', type=int, default=256, metavar='N', help='how many (default: %(default)s)')
    parser.add_argument(
        '--scores', metavar='FILE', help='score subnets by k-NN with each order, before any training: table and JSON'
    )
    parser.add_argument(
        '--subnets',
        nargs='+',
        metavar='WxD',
        help='what --scores scores (default: the smallest, the middle and the largest)',
    )
    parser.add_argument('--heads', type=int, metavar='N', help='attention heads of a ViT, if the file does not say')
    parser.add_argument('--groups', type=int, metavar='N', help='groups of the norms of a ResNet (default: 32)')
    parser.add_argument('--seed', type=int, default=0, help='of the new heads (default: %(default)s)')
    add_config_options(parser)
    parser.add_argument('--debug', action='store_true', help='show where in the code an error comes from')
    return parser.parse_args(argv)


def print_scores(scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table('subnet', *scores, title='k-NN top-1 accuracy (%) before any training, by order')
    for subnet in next(iter(scores.values())):
        table.add_row(subnet, *(f'{100 * found[subnet]["accuracy"]:.2f}' for found in scores.values()))
    Console(markup=False).print(table)


def run(args: argparse.Namespace) -> None:
    from mmengine.registry import init_default_scope

    from poa_mm.checkpoint import write_file
    from poa_mm.deploy.warm_start import warm_start
    from poa_mm.engine.launch import read_config
    from poa_mm.mistakes import check_out_file

    if args.scores is not None:
        check_out_file(args.scores)
    reads = ('model', 'knn', 'data_preprocessor', 'default_scope', 'custom_imports')
    config = read_config(args.config, args.cfg_options, reads=reads)
    init_default_scope(config.get('default_scope', 'mmpretrain'))
    done = warm_start(
        config,
        args.weights,
        args.out,
        order=args.order,
        images=args.images,
        num_images=args.num_images,
        scores=args.scores is not None,
        subnets=args.subnets,
        heads=args.heads,
        groups=args.groups,
        seed=args.seed,
        progress=True,
    )
    print(f'weights: {done.layout}')
    if done.left_out:
        print(f'left out: {", ".join(done.left_out)}')
    if done.assumed:
        print(f'taken as usual, as the file does not say: {", ".join(done.assumed)}')
    for change in done.changes:
        print(change)
    if done.normalisation:
        print(f'warning: {done.normalisation}')
    print(f'compared with the network of {done.library}: features differ by {done.max_abs_diff:.1e} at most')
    if done.scores is not None:
        print_scores(done.scores)
        write_file(args.scores, [(json.dumps(done.scores, indent=2) + '\n').encode()])
        print(f'wrote {args.scores}')
    print(f'wrote {args.out}, ordered by {done.order}; tools/train.py CONFIG --cfg-options load_from={args.out}')


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    from poa_mm.mistakes import run_tool

    return run_tool('warm_start', run, args, debug=args.debug)


if __name__ == '__main__':
    sys.exit(main())
