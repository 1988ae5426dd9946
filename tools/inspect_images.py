"""Look at a set of images before anything is trained on it: what is there, what is odd, which settings suit it.

    python tools/inspect_images.py SOURCE [-o DIR] [--sample N] [--near-duplicates]

SOURCE is a folder, tar shards (DIR/*.tar) or a data set of Hugging Face. Writes DIR/images.json and DIR/images.html,
a page with thumbnails of the odd ones.
"""

from __future__ import annotations

import argparse
import sys

from poa_mm.datasets.inspection import inspect, write_report
from poa_mm.datasets.inspection.report import build_report, lines
from poa_mm.datasets.sources import guess_source
from poa_mm.evaluation.progress import show_progress
from poa_mm.mistakes import add_debug, check_out_dir, run_tool


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', help='folder of images, tar shards, or a data set of Hugging Face')
    parser.add_argument('-o', '--out', default='.', metavar='DIR', help='where the report goes (default: here)')
    parser.add_argument('--sample', type=int, metavar='N', help='look at so many images only, drawn at random')
    parser.add_argument('--near-duplicates', action='store_true', help='look for images that look alike, too')
    parser.add_argument('--processes', type=int, metavar='N', help='default: one for each core')
    parser.add_argument('--split', default='train', help="of a data set of Hugging Face (default: 'train')")
    add_debug(parser)
    return parser.parse_args()


def report(args: argparse.Namespace) -> None:
    check_out_dir(args.out)
    source = guess_source(args.source, split=args.split)
    number = len(source) if args.sample is None else min(args.sample, len(source))
    with show_progress('inspected', number) as progress:
        summary = inspect(source, args.sample, args.near_duplicates, args.processes, progress)
    paths = write_report(source, summary, args.out)
    print(*lines(build_report(source, summary)), sep='\n')
    print('wrote', *paths)


def main() -> None:
    args = parse_args()
    if code := run_tool('inspect_images', report, args, debug=args.debug):
        sys.exit(code)


if __name__ == '__main__':
    main()
