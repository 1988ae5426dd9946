"""Extraction of ViT-L's 143 subnets and k-NN of all subnets of the demo: seconds, and that nothing is done twice.

Subnets spread evenly over the space are cut out of a full-size supernet of random weights, without and with
verification, into a temporary folder. All 143 take 62 GiB there: `--every 1`; the default, every sixth, takes 11. With
`--goes 2` they are extracted by two calls, in half the space. How much a call reads is compared with the size of the
checkpoint, for one subnet and for many.

The subnets of the digits recipe, untrained, are scored by k-NN; the images that each computes features of are counted.

    python benchmarks/bench_extract.py [--every 6] [--goes 1] [--json OUT]

The JSON has seconds before the first subnet (`load`), per subnet and, estimated from both, for all 143, with
verification off and on; `checkpoint_reads` (bytes read over bytes of the checkpoint) by number of subnets; and of the
k-NN seconds and `features_per_image`, how often a subnet computed the features of each image.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import torch
from extract_vitl import ROOT, save_supernet
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch import Tensor, nn

from poa_mm.deploy.extract import extract_subnets
from poa_mm.elastic import Subnet
from poa_mm.evaluation import evaluate_knn


class Laps:
    """Iterates over subnets and notes when each one starts and when the last one is done."""

    def __init__(self):
        self.times: list[float] = []

    def __call__(self, subnets: Sequence[Subnet]) -> Iterator[Subnet]:
        for subnet in subnets:
            self.times.append(time.perf_counter())
            yield subnet
        self.times.append(time.perf_counter())

    def seconds(self) -> list[float]:
        return [end - start for start, end in zip(self.times, self.times[1:])]


def extraction(checkpoint: Path, subnets: Sequence[Subnet], verify: bool) -> dict:
    """Extract to a temporary folder: seconds before the first subnet, of each and in all; what was read."""
    laps, process = Laps(), psutil.Process()
    with tempfile.TemporaryDirectory(dir=checkpoint.parent) as folder:
        read = process.io_counters().read_chars
        start = time.perf_counter()
        entries = extract_subnets(checkpoint, subnets, folder, verify=verify, progress=laps)
        end = time.perf_counter()
        read = process.io_counters().read_chars - read
    return dict(
        load=laps.times[0] - start,
        per_subnet=laps.seconds(),
        total=end - start,
        reads=read / checkpoint.stat().st_size,
        max_abs_diff=max(entry['max_abs_diff'] for entry in entries) if verify else None,
    )


def measure_extraction(folder: Path, every: int, goes: int) -> dict:
    checkpoint = folder / 'supernet.pth'
    space = list(save_supernet(checkpoint).space)
    chosen = space[every // 2 :: every]
    parts = [chosen[go::goes] for go in range(min(goes, len(chosen)))]
    single = extraction(checkpoint, chosen[:1], verify=False)
    result = dict(subnets=len(chosen), checkpoint_reads={1: round(single['reads'], 2)})
    for verify in (False, True):
        found = [extraction(checkpoint, part, verify) for part in parts]
        load = statistics.mean(go['load'] for go in found)
        seconds = [value for go in found for value in go['per_subnet']]
        result['checkpoint_reads'] |= {len(part): round(go['reads'], 2) for part, go in zip(parts, found)}
        result['verified' if verify else 'not_verified'] = dict(
            load=round(load, 2),
            per_subnet=round(statistics.mean(seconds), 2),
            longest=round(max(seconds), 2),
            all_143=round(load + statistics.mean(seconds) * len(space), 1),
            max_abs_diff=max(go['max_abs_diff'] for go in found) if verify else None,
        )
    return result


class CountedFeatures:
    """Stands in for ``extract_features`` of a backbone and counts images by subnet."""

    def __init__(self, backbone: nn.Module):
        self.extract_features = backbone.extract_features
        self.images: Counter[str] = Counter()

    def __call__(self, x: Tensor, subnet: Subnet | None = None):
        self.images[str(subnet)] += len(x)
        return self.extract_features(x, subnet)


def measure_knn() -> dict:
    cfg = Config.fromfile(ROOT / 'configs' / 'poa' / 'vitt_digits.py')
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    backbone = model.teacher['backbone']
    backbone.extract_features = counted = CountedFeatures(backbone)
    start = time.perf_counter()
    results = evaluate_knn(cfg, backbone, progress=False)
    seconds = time.perf_counter() - start
    images = sum(len(DATASETS.build(cfg.knn[part].dataset)) for part in ('bank', 'query'))
    return dict(
        subnets=len(results),
        images=images,
        seconds=round(seconds, 2),
        features_per_image=sorted({count / images for count in counted.images.values()}),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--every', type=int, default=6, help='extract every so many of the subnets (default: 6)')
    parser.add_argument('--goes', type=int, default=1, help='calls to extract them by, one after another (default: 1)')
    parser.add_argument('--json', type=Path, metavar='OUT', help='write the result there too')
    args = parser.parse_args()
    torch.manual_seed(0)
    result = dict(threads=torch.get_num_threads(), knn=measure_knn())
    with tempfile.TemporaryDirectory() as folder:
        result |= measure_extraction(Path(folder), args.every, args.goes)
    print(json.dumps(result, indent=2))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + '\n')


if __name__ == '__main__':
    main()
