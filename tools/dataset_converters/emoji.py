"""Turn the npm package emoji-datasource-twitter (or -google, -apple ..) into folders of images, one for each category.

    npm pack emoji-datasource-twitter@16.0.0
    python tools/dataset_converters/emoji.py emoji-datasource-twitter-16.0.0.tgz data/emoji

Nothing of the package is part of poa_mm; its graphics come under a licence of their own (Twemoji's: CC-BY 4.0).
"""

from __future__ import annotations

import argparse
import sys

from poa_mm.datasets.emoji import write_emoji
from poa_mm.mistakes import add_debug, run_tool


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument('package', metavar='PACKAGE', help='the .tgz file, or the folder that it was unpacked to')
    parser.add_argument('out', metavar='OUT', help='folder to write, new or empty')
    add_debug(parser)
    return parser.parse_args()


def convert(args: argparse.Namespace) -> None:
    counts = write_emoji(args.package, args.out)
    for split, number in counts.items():
        print(f'{args.out}/{split}: {number} images')


def main() -> None:
    args = parse_args()
    if code := run_tool('emoji', convert, args, debug=args.debug):
        sys.exit(code)


if __name__ == '__main__':
    main()
