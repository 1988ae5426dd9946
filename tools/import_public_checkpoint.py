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
    parser.add_argument(
        '--branch',
        choices=('teacher', 'student'),
        help='branch that subnets will be cut from; of a file that does not name branches, the one that it holds '
        '(default: teacher)',
    )
    parser.add_argument('--debug', action='store_true', help='show where in the code an error comes from')
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    from poa_mm.deploy.public_checkpoint import import_public_checkpoint

    report = import_public_checkpoint(args.config, args.checkpoint, args.out, args.branch)
    if report.ignored:
        print(f'ignored: {", ".join(report.ignored)}')
    if not report.named:
        print(
            "the file does not say whether its weights are the teacher's or the student's: taken as the teacher's "
            '(--branch student says otherwise)'
        )
    if report.branch == 'student':
        print('the student stands in for the teacher, which subnets are cut from')
    elif report.student_copied:
        print('there is no student in it: the student is a copy of the teacher')
    print(f'wrote {args.out}')


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    from poa_mm.mistakes import run_tool

    return run_tool('import_public_checkpoint', run, args, debug=args.debug)


if __name__ == '__main__':
    sys.exit(main())
