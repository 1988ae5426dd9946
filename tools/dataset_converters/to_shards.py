"""Pack images into uncompressed tar files of WebDataset's layout, for `dict(type='TarImages', ...)`.

    python tools/dataset_converters/to_shards.py FOLDER -o DIR [--labels]

A few large files are read faster than millions of small ones from network storage and spinning disks. Images are
copied byte by byte, in the order in which a run on the folder has them, and each shard is read back and compared
before it gets its name. Interrupted, the same command goes on with the first shard that is missing.
"""

from __future__ import annotations

import argparse
import sys

from poa_mm.datasets.sources import guess_source
from poa_mm.datasets.write_shards import write_shards
from poa_mm.evaluation.progress import show_progress
from poa_mm.mistakes import add_debug, run_tool


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', help='folder of images, other shards, or a data set of Hugging Face')
    parser.add_argument('-o', '--out', required=True, metavar='DIR', help='where the shards go')
    parser.add_argument('--labels', action='store_true', help='the folders in FOLDER are classes')
    parser.add_argument('--per-shard', type=int, default=10_000, metavar='N', help='images of a shard (default: 10000)')
    parser.add_argument('--prefix', default='train', help="the shards are PREFIX-000000.tar .. (default: 'train')")
    parser.add_argument('--split', default='train', help="of a data set of Hugging Face (default: 'train')")
    add_debug(parser)
    return parser.parse_args()


def convert(args: argparse.Namespace) -> None:
    source = guess_source(args.source, args.labels, args.split)
    with show_progress('shards', len(source)) as progress:
        paths = write_shards(source, args.out, args.per_shard, args.prefix, progress)
    last = paths[-1].name.removeprefix(f'{args.prefix}-').removesuffix('.tar')
    pattern = paths[0].name if len(paths) == 1 else f'{args.prefix}-{{000000..{last}}}.tar'
    print(f"{len(source):,} images; dict(type='TarImages', data_root={args.out!r}, shards={pattern!r}) reads them")


def main() -> None:
    args = parse_args()
    if code := run_tool('to_shards', convert, args, debug=args.debug):
        sys.exit(code)


if __name__ == '__main__':
    main()
