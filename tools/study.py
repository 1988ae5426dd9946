"""Is POA worth it? Run, or go on with, the study whose results are in docs/evidence.md and docs/warm_start.md.

    python tools/study.py --jobs 2                                          # all of it; killed, it goes on where it was
    python tools/study.py --only poa --seeds 7 --data fashion_mnist         # one new run
    python tools/study.py --report                                          # tables and figures again, no training
    python tools/study.py --smoke                                           # every kind of row in a minute, on digits

Each result is added to docs/evidence.json at once. POA_FMNIST and POA_EMOJI say where the data lies.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from poa_mm.mistakes import add_debug, run_tool
from poa_mm.study import ROWS, run_study, write_report
from poa_mm.study.report import EVIDENCE, PAGE, WARM_PAGE
from poa_mm.study.rows import DATA
from poa_mm.study.smoke import smoke


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument('--only', nargs='+', metavar='ROW', choices=ROWS, help=f'of {", ".join(ROWS)}')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2], metavar='SEED', help='default: 0 1 2')
    parser.add_argument('--data', nargs='+', choices=DATA, help='default: all')
    parser.add_argument('--jobs', type=int, default=1, help='pieces of work side by side (default: 1)')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/study'), help='default: %(default)s')
    parser.add_argument('--evidence', type=Path, default=EVIDENCE, metavar='JSON', help='default: docs/evidence.json')
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument('--report', action='store_true', help='only rebuild tables and figures')
    kinds.add_argument('--smoke', action='store_true', help='only try every kind of row, in a temporary folder')
    add_debug(parser)
    return parser.parse_args()


def study(args: argparse.Namespace) -> None:
    if args.smoke:
        with tempfile.TemporaryDirectory() as folder:
            entries = smoke(Path(folder))
        print(f'smoke: {len(entries)} networks scored, of all {len(ROWS)} rows')
        return
    if not args.report:
        run_study(args.work_dir, args.evidence, args.only, args.seeds, args.data, args.jobs)
    pages = (PAGE, WARM_PAGE) if args.evidence.resolve() == EVIDENCE else (args.evidence.with_suffix('.md'),)
    for path in dict.fromkeys(path for page in pages for path in write_report(args.evidence, page)):
        print('wrote', path)


def main() -> int:
    args = parse_args()
    return run_tool('study', study, args, debug=args.debug)


if __name__ == '__main__':
    sys.exit(main())
