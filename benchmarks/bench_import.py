"""What `import poa_mm` takes beyond mmpretrain.

In fresh processes, `import mmpretrain`, which leaves its models out, is timed first, then the import of those parts of
it that poa_mm extends and every run of mmpretrain loads, its models (which import mmdet where it is installed),
datasets and metrics, then `import poa_mm`.

    python benchmarks/bench_import.py [--repeats 5] [--json OUT]

The JSON has medians over the processes in seconds: `mmpretrain_seconds`, `mmpretrain_parts_seconds`, `beyond_seconds`
of poa_mm, and the packages that poa_mm is the first to load, Python's own left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAM = """
import json, sys, time
seconds = []
for statement in sys.argv[1:]:
    before = set(sys.modules)
    start = time.perf_counter()
    exec(statement)
    seconds.append(time.perf_counter() - start)
packages = {name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
print(json.dumps([seconds, sorted(packages - {name.partition('.')[0] for name in before})]))
"""
STATEMENTS = {
    'mmpretrain_seconds': 'import mmpretrain',
    'mmpretrain_parts_seconds': 'import mmpretrain.models, mmpretrain.datasets, mmpretrain.evaluation',
    'beyond_seconds': 'import poa_mm',
}


def run() -> tuple[list[float], list[str]]:
    """Seconds of each statement in a fresh process, and packages that the last one was the first to load."""
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM, *STATEMENTS.values()], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure(repeats: int) -> dict:
    _, packages = run()  # compiles and reads from disk
    seconds = zip(*(run()[0] for _ in range(repeats)))
    medians = {name: round(statistics.median(column), 3) for name, column in zip(STATEMENTS, seconds)}
    return dict(**medians, packages=packages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--repeats', type=int, default=5, help='processes (default: 5)')
    parser.add_argument('--json', type=Path, metavar='OUT', help='write the result there too')
    args = parser.parse_args()
    result = measure(args.repeats)
    print(json.dumps(result, indent=2))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + '\n')


if __name__ == '__main__':
    main()
