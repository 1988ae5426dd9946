"""A step of the ViT-L recipe on one GPU: how fast, how large, and where the time goes.

    python benchmarks/bench_gpu.py [--json OUT]     (at most 8 minutes)

In bfloat16 and float16, with plain, checkpointed (`with_cp`), compiled blocks and both, the largest batch of 8, 16, 32,
50, 64 and 96 images that fits is looked for, and whole steps are timed there and at 50: preprocessing, teacher, both
students, losses, clipping, AdamW, the teacher's update, with the smallest, a middle and the largest subnet by turns.
The baseline is the straightforward joint step of `bench_memory.py`: one backward pass, whole logits.

The JSON has for each of them images a second, TFLOP/s (all matrix products of a step, counted by torch's counter as in
`bench_step.py`, recomputation not counted), their share of the `peak_tflops` that a product of two large matrices was
measured at, seconds by phase (CUDA events), and peak memory beside the estimate of `bench_memory.py`; `targets`, at 50
images in bfloat16; and the share of a step that waits for real JPEGs. What the time did not suffice for is in
`left_out`.

It runs on CPUs too, which shows that it works (`--size tiny`), not how fast anything is.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
import traceback
from collections import defaultdict
from pathlib import Path

import bench_memory
import torch
from bench_data import make_images
from gpu_step import CONFIG, Step
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmpretrain.datasets import build_dataset
from mmpretrain.structures import DataSample
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, RandomSampler

from poa_mm.elastic import Subnet
from poa_mm.models import POA

MODES = {
    'plain': dict(with_cp=False, compiled=False),
    'with_cp': dict(with_cp=True, compiled=False),
    'compiled': dict(with_cp=False, compiled=True),
    'compiled, with_cp': dict(with_cp=True, compiled=True),
}
TINY = dict(  # of the model
    backbone=dict(
        arch=dict(embed_dims=128, num_layers=3, num_heads=2, feedforward_channels=256),
        widths=[64, 128],
        depths=[2, 3],
        img_size=32,
    ),
    head=dict(num_prototypes=[64, 128], hidden_channels=64, bottleneck_channels=32),
)
RECIPE = dict(batches=(8, 16, 32, 50, 64, 96), usual=50, counted=8, rate=8192, model={}, images=128, steps=2)
SIZES = {
    'recipe': RECIPE | dict(modes=tuple(MODES)),
    'tiny': dict(batches=(2,), usual=2, counted=2, rate=256, model=TINY, images=4, steps=1, modes=('plain', 'with_cp')),
}


def synthetic(model: POA, images: int, device: torch.device) -> dict:
    """A batch as the loader gives it: bytes in pinned memory, and masks on the recipe's average of patches."""
    size = model.backbone.img_size[0]
    sizes = [size] * 2 + [local_size(size)] * bench_memory.NUM_LOCAL
    views = [torch.randint(256, (images, 3, side, side), dtype=torch.uint8) for side in sizes]
    if device.type == 'cuda':
        views = [view.pin_memory() for view in views]
    masks = bench_memory.masks(images, model.backbone.mask_grid((size, size)))
    return dict(inputs=views, data_samples=[DataSample(mask=mask) for mask in masks])


def local_size(size: int) -> int:
    """Side of local crops beside global ones of ``size``, as in the recipe."""
    return bench_memory.LOCAL_SIZE * size // 224


def subnets_of(model: POA) -> list[Subnet]:
    """The smallest, one in the middle and the largest."""
    subnets = list(model.backbone.space)
    return [subnets[0], subnets[len(subnets) // 2], subnets[-1]]


def product_rate(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """FLOP/s of a product of two matrices, the fastest of ten."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(10):
        seconds.append(seconds_of(device, lambda: a @ b))
    return 2 * side**3 / min(seconds)


def seconds_of(device: torch.device, function) -> float:
    """Of a call, all that it had the device do included."""
    if device.type == 'cuda':
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device.type == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - start


def out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.cuda.OutOfMemoryError)


class Bench:
    """What is measured, and the time there is for it."""

    def __init__(self, size: str, device: torch.device, minutes: float):
        self.size, self.device = SIZES[size], device
        self.deadline = time.monotonic() + 60 * minutes
        model = Config.fromfile(CONFIG).model
        self.model_cfg = merged(model.to_dict(), self.size['model'])
        self.flops: dict[str, float] = {}  # of an image, by subnet
        self.estimates: dict[tuple, float] = {}
        self.left_out: list[str] = []

    def model_config(self, with_cp: bool) -> dict:
        return merged(self.model_cfg, dict(backbone=dict(with_cp=with_cp)))

    def count_flops(self, dtype: str) -> None:
        step = Step(self.model_config(False), POA, self.device, dtype, compiled=False)
        images = self.size['counted']
        batch = synthetic(step.model, images, self.device)
        for subnet in subnets_of(step.model):
            self.flops[str(subnet)] = step.flops(batch, subnet) / images

    def measure(self, kind: type[POA], dtype: str, mode: str, batches: list[int]) -> list[dict]:
        """Rows for the first of ``batches`` that fits, and for the usual one."""
        rows: list[dict] = []
        for images in batches:
            if rows and (images != self.size['usual'] or rows[0]['batch'] == images):
                continue
            if time.monotonic() > self.deadline:
                self.left_out.append(f'{kind.__name__} {dtype} {mode} at {images}')
                break
            row = self.row(kind, dtype, mode, images)
            if row is not None:
                rows.append(row)
        return rows

    def row(self, kind: type[POA], dtype: str, mode: str, images: int) -> dict | None:
        """One row; None if it does not fit or fails, which must not cost what has been measured."""
        found = None
        try:
            found = self._row(kind, dtype, mode, images)
        except Exception as error:
            if not out_of_memory(error):
                traceback.print_exc()
                reason = str(error).splitlines() or ['']
                self.left_out.append(
                    f'{kind.__name__} {dtype} {mode} at {images} failed: {type(error).__name__}: {reason[0]}'
                )
        gc.collect()  # outside of the except clause, which holds what was on the stack
        if self.device.type == 'cuda':
            torch.cuda.empty_cache()
        return found

    def _row(self, kind: type[POA], dtype: str, mode: str, images: int) -> dict:
        if self.device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats()
        options = MODES[mode]
        step = Step(self.model_config(options['with_cp']), kind, self.device, dtype, options['compiled'])
        batch, subnets = synthetic(step.model, images, self.device), subnets_of(step.model)
        for subnet in subnets[::-1]:  # the largest first: it is what may not fit
            step.run(batch, subnet)
        step.watch.collect(), step.watch.seconds.clear()
        seconds = defaultdict(list)
        for _ in range(self.size['steps']):
            for subnet in subnets:
                seconds[subnet].append(seconds_of(self.device, lambda subnet=subnet: step.run(batch, subnet)))
        phases = step.watch.collect()
        medians = {subnet: statistics.median(values) for subnet, values in seconds.items()}
        total = sum(medians.values())
        flops = images * sum(self.flops[str(subnet)] for subnet in subnets)
        peak = torch.cuda.max_memory_allocated() / 2**30 if self.device.type == 'cuda' else None
        return dict(
            kind='joint' if kind is not POA else 'shipped',
            dtype=dtype,
            mode=mode,
            batch=images,
            images_per_second=round(images * len(subnets) / total, 2),
            seconds={str(subnet): round(value, 4) for subnet, value in medians.items()},
            tflops=round(flops / total / 1e12, 3),
            phases={name: round(value / self.size['steps'] / len(subnets), 4) for name, value in phases.items()},
            skipped_steps=step.optim_wrapper.skipped_in_a_row,
            peak_gib=peak and round(peak, 2),
            estimated_gib=self.estimate(kind, images, subnets[-1], options['with_cp']),
        )

    def estimate(self, kind: type[POA], images: int, subnet: Subnet, with_cp: bool) -> float:
        """Peak that `bench_memory.py` expects without DDP's buckets, in GiB."""
        key = (kind, images, with_cp)
        if key not in self.estimates:
            peak = bench_memory.estimate(self.model_config(with_cp), kind, images, subnet, torch.float16)
            peak.pop('buckets of DDP', None)
            self.estimates[key] = round(sum(peak.values()) / 2**30, 3)
        return self.estimates[key]

    def loading(self, dtype: str, images: int) -> dict:
        """Steps fed by real JPEGs through the recipe's pipeline."""
        cfg = Config.fromfile(CONFIG)
        steps, workers = 6 * self.size['steps'], min(16, os.cpu_count() or 1) if self.device.type == 'cuda' else 0
        step = Step(self.model_config(False), POA, self.device, dtype, compiled=False)
        subnet = subnets_of(step.model)[1]
        waited = 0.0
        with tempfile.TemporaryDirectory() as folder:
            make_images(Path(folder), self.size['images'])
            cfg.train_dataloader.dataset.data_prefix = folder
            _, views, masks, _ = cfg.train_dataloader.dataset.pipeline
            size = step.model.backbone.img_size[0]
            for view, side in zip(views.transforms, (size, size, local_size(size))):
                view[0].scale = side
            masks.grid = step.model.backbone.mask_grid((size, size))
            dataset = build_dataset(cfg.train_dataloader.dataset)
            sampler = RandomSampler(dataset, replacement=True, num_samples=images * (steps + 2))
            loader = DataLoader(
                dataset,
                images,
                sampler=sampler,
                num_workers=workers,
                pin_memory=self.device.type == 'cuda',
                collate_fn=default_collate,
            )
            batches = iter(loader)
            for _ in range(2):
                step.run(next(batches), subnet)
            start = time.perf_counter()
            for _ in range(steps):
                before = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - before
                seconds_of(self.device, lambda batch=batch: step.run(batch, subnet))
            total = time.perf_counter() - start
        return dict(
            batch=images,
            workers=workers,
            images_per_second=round(images * steps / total, 2),
            waits=round(waited / total, 3),
        )

    def run(self) -> dict:
        device, batches = self.device, sorted(self.size['batches'], reverse=True)
        MMLogger.get_instance('benchmark', log_level='ERROR').setLevel('ERROR')
        rates = {
            dtype: product_rate(device, getattr(torch, dtype), self.size['rate']) for dtype in ('bfloat16', 'float16')
        }
        self.count_flops('bfloat16')
        rows = self.measure(POA, 'bfloat16', 'plain', batches)
        rows += self.measure(bench_memory.JointPOA, 'bfloat16', 'plain', batches)
        loading = self.loading('bfloat16', rows[0]['batch'] if rows else batches[-1])
        for mode in self.size['modes']:  # compiling, which takes minutes, comes last
            for dtype in ('bfloat16', 'float16'):
                if (dtype, mode) != ('bfloat16', 'plain'):
                    rows += self.measure(POA, dtype, mode, batches)
        for row in rows:
            row['share_of_peak'] = round(1e12 * row['tflops'] / rates[row['dtype']], 4)
        return dict(
            device=torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU',
            torch=torch.__version__,
            cuda=torch.version.cuda,
            peak_tflops={dtype: round(rate / 1e12, 3) for dtype, rate in rates.items()},
            gflop_of_an_image={subnet: round(value / 1e9, 2) for subnet, value in self.flops.items()},
            rows=rows,
            loading=loading,
            targets=targets(rows, self.size['usual']),
            left_out=self.left_out,
        )


def merged(config: dict, more: dict) -> dict:
    """``config`` with the entries of ``more``, those of nested dicts one by one."""
    result = dict(config)
    for key, value in more.items():
        nested = isinstance(value, dict) and isinstance(config.get(key), dict) and key != 'arch'
        result[key] = merged(config[key], value) if nested else value
    return result


def targets(rows: list[dict], images: int) -> dict:
    """In bfloat16, the best mode's share of the peak, and the plain one's time and memory over the joint step's."""
    there = [row for row in rows if row['dtype'] == 'bfloat16' and row['batch'] == images]
    shipped = [row for row in there if row['kind'] == 'shipped']
    joint = [row for row in rows if row['kind'] == 'joint' and row['dtype'] == 'bfloat16']
    if not shipped or not joint:
        return {}
    joint = next((row for row in joint if row['batch'] == images), joint[0])
    plain = next((row for row in shipped if row['mode'] == 'plain'), shipped[0])
    found = dict(
        batch=images,
        joint_batch=joint['batch'],
        share_of_peak=max(row['share_of_peak'] for row in shipped),
        time_of_an_image_over_joint=round(joint['images_per_second'] / plain['images_per_second'], 3),
    )
    if plain['peak_gib'] and joint['batch'] == images:
        found['memory_over_joint'] = round(plain['peak_gib'] / joint['peak_gib'], 3)
    if plain['peak_gib']:
        found['memory_over_estimate'] = round(plain['peak_gib'] / plain['estimated_gib'], 3)
    return found


def show(result: dict) -> None:
    console = Console()
    columns = ('kind', 'dtype', 'mode', 'batch', 'images_per_second', 'tflops', 'share_of_peak', 'peak_gib')
    table = Table(*columns, 'estimated_gib', title=f'{result["device"]}, torch {result["torch"]}')
    for row in result['rows']:
        table.add_row(*(str(row[column]) for column in (*columns, 'estimated_gib')))
    console.print(table)
    console.print({key: value for key, value in result.items() if key != 'rows'})


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', choices=SIZES, default='recipe', help='default: recipe, that of ViT-L')
    parser.add_argument('--device', default='cuda', help='default: cuda')
    parser.add_argument('--minutes', type=float, default=5.5, help='start nothing new after them (default: 5.5)')
    parser.add_argument('--json', type=Path, metavar='OUT', help='write the result there too')
    args = parser.parse_args(argv)
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('no CUDA device; --device cpu --size tiny shows that it works')
    if args.json and not args.json.absolute().parent.is_dir():
        parser.error(f'--json {args.json}: there is no folder {args.json.parent}')
    init_default_scope('mmpretrain')
    result = Bench(args.size, torch.device(args.device), args.minutes).run()
    show(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + '\n')
    return result


if __name__ == '__main__':
    main()
