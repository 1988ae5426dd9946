"""Run the ViT-L recipe as shipped on the CPU and on this machine's memory.

`configs/poa/vitl_in1k.py`, unchanged but for a batch of 2 images, 2 iterations and a folder of JPEGs shaped
like ImageNet (made here), goes through `tools/train.py` with its teacher, both students and all four heads
(122,880 prototypes). Prints losses, seconds and the peak memory of the process.

    python benchmarks/vitl_cpu.py [--json OUT]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / 'configs' / 'poa' / 'vitl_in1k.py'


def make_images(folder: Path, classes: int = 4, per_class: int = 4) -> None:
    """JPEGs of about ImageNet's size: smoothed noise, in a sub-folder for each class."""
    rng = np.random.default_rng(0)
    for c in range(classes):
        (folder / f'n{c:08d}').mkdir(parents=True)
        for i in range(per_class):
            coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
            image = cv2.resize(coarse, (500, 375), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(folder / f'n{c:08d}' / f'n{c:08d}_{i}.JPEG'), image)


def run(folder: Path, iterations: int) -> dict:
    """Train and measure."""
    make_images(folder / 'train')
    options = [
        'train_dataloader.batch_size=2',
        f'train_dataloader.dataset.data_prefix={folder / "train"}',
        f'train_cfg.max_iters={iterations}',
        'default_hooks.logger.interval=1',
    ]
    command = [sys.executable, ROOT / 'tools' / 'train.py', CONFIG, '--work-dir', folder / 'work', '--cfg-options']
    start = time.monotonic()
    done = subprocess.run(
        [*map(str, command), *options],
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stdout[-4000:])
    steps = re.findall(r'Iter\(train\).*', done.stdout)
    print(*steps, sep='\n')
    return dict(
        seconds=round(time.monotonic() - start, 1),
        peak_rss_gib=round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20, 2),
        losses=[float(re.search(r' loss: (\S+)', step).group(1)) for step in steps],
        checkpoint_gib=round(sum(f.stat().st_size for f in (folder / 'work').glob('*.pth')) / 2**30, 2),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--iterations', type=int, default=2, help='default: 2')
    parser.add_argument('--json', type=Path, metavar='OUT', help='write the result there too')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = run(Path(folder), args.iterations)
    print(json.dumps(result))
    if args.json:
        args.json.write_text(json.dumps(result) + '\n')


if __name__ == '__main__':
    main()
