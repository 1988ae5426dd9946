"""Turn a checkpoint of the authors' public code into one of poa_mm."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='pre-training config of the network that the checkpoint holds')
    parser.add_argument('checkpoint', help='public checkpoint, .pth or .safetensors')
    parser.add_argument('-o', '--out', required=True, metavar='FILE', help='checkpoint to write')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    from poa_mm.deploy.public_checkpoint import import_public_checkpoint

    try:
        report = import_public_checkpoint(args.config, args.checkpoint, args.out)
    except (ValueError, OSError) as error:
        print(f'import_public_checkpoint.py: error: {error}', file=sys.stderr)
        return 2
    if report.ignored:
        print(f'ignored: {", ".join(report.ignored)}')
    if report.student_copied:
        print('there is no student in it: the student is a copy of the teacher')
    print(f'wrote {args.out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
