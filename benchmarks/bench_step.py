"""What a step of POA costs against what its arithmetic costs, in float32 on the CPU.

For a list of subnets, the elastic student's, whole steps are timed: teacher, both students, heads and losses, both
backward passes, clipping, AdamW, the teacher's update, schedules, and what is logged of the run's health. FLOPs of all
matrix products of a step, counted while it runs (`torch.utils.flop_counter`), over the rate of a product of two 4096 x
4096 matrices, the mean of one right before and one right after each step, make the floor that no implementation of this
arithmetic gets below.

    python benchmarks/bench_step.py [--shape S4] [--repeats 3] [--json OUT]
    python benchmarks/bench_step.py --batch-size 8 --micro-batches 4        # pieces of 2 images

The JSON has `ratio` (median over the subnets of seconds over floor), `median_seconds`, `peak_rss_gib` (above what the
process held after its imports), seconds by phase and what each subnet took. With `--micro-batches`, whole steps and
steps in pieces take turns instead, and the JSON has `pieces_ratio`, the median of the processor's time of one in pieces
over that of the whole one before it.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import torch
from mmengine.hooks import ParamSchedulerHook, RuntimeInfoHook
from mmengine.logging import MessageHub, MMLogger
from mmengine.optim import CosineAnnealingLR, CosineAnnealingParamScheduler, build_optim_wrapper
from mmengine.registry import MODELS
from mmpretrain.structures import DataSample
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from poa_mm.elastic import Subnet
from poa_mm.engine.hooks import POAScheduleHook, RunHealthHook, TeacherEMAHook
from poa_mm.engine.memory import keep_freed_memory
from poa_mm.models.selfsup.early_backward import EarlyBackward
from poa_mm.models.selfsup.poa import TeacherTargets

HEAD = dict(type='MultiPrototypeHead')
SHAPES = {
    'S4': dict(batch=4, crops=(224, 96), head=HEAD, widths=(192, 256, 320, 384), depths=tuple(range(6, 13))),
    'tiny': dict(
        batch=4,
        crops=(64, 32),
        head=HEAD | dict(num_prototypes=[512, 1024], hidden_channels=256, bottleneck_channels=64),
        widths=(64, 128),
        depths=(2, 3, 4),
    ),
}
NUM_LOCAL = 8
MASKED_SHARE = 0.28  # of two in four global crops: about 220 patches at S4
HEALTH_INTERVAL = 5  # steps; 50 by default
RATE_SIZE = 4096
Shape = Sequence[int]


def addmm_flops(out: Shape, a: Shape, b: Shape, **_) -> int:
    return 2 * a[0] * a[1] * b[1]


def attention_flops(query: Shape, key: Shape, value: Shape, *_, **__) -> int:
    return sdpa_flop_count(query, key, value)


def attention_backward_flops(grad: Shape, query: Shape, key: Shape, value: Shape, *_, **__) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


aten = torch.ops.aten
# torch's counter knows addmm, but not addmm_, and fused attention, but not the CPU's own.
FLOPS = {aten.addmm_: addmm_flops}
if hasattr(aten, '_scaled_dot_product_flash_attention_for_cpu'):  # not in torch 2.1
    FLOPS[aten._scaled_dot_product_flash_attention_for_cpu] = attention_flops
    FLOPS[aten._scaled_dot_product_flash_attention_for_cpu_backward] = attention_backward_flops


class Stopwatch:
    """Seconds by phase; the time of an inner phase does not count for the outer one."""

    def __init__(self):
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = [0.0]

    @contextmanager
    def phase(self, name: str):
        self._inner.append(0.0)
        start = time.perf_counter()
        yield
        spent = time.perf_counter() - start
        self.seconds[name] += spent - self._inner.pop()
        self._inner[-1] += spent

    def watch(self, owner, function: str, name) -> None:
        """Time every call; ``name`` is the phase or finds it from the arguments."""
        original = getattr(owner, function)

        def timed(*args, **kwargs):
            with self.phase(name(*args, **kwargs) if callable(name) else name):
                return original(*args, **kwargs)

        setattr(owner, function, timed)


class Step:
    """A model with everything that a step needs.

    Args:
        shape: One of ``SHAPES``.
    """

    def __init__(self, shape: dict):
        torch.manual_seed(0)
        width, depth = max(shape['widths']), max(shape['depths'])
        arch = dict(embed_dims=width, num_layers=depth, num_heads=width // 64, feedforward_channels=4 * width)
        backbone = dict(
            type='ElasticVisionTransformer',
            arch=arch,
            widths=shape['widths'],
            depths=shape['depths'],
            img_size=shape['crops'][0],
        )
        self.model = MODELS.build(dict(type='POA', backbone=backbone, head=shape['head']))
        self.model.init_weights()
        self.model.train()
        self.optim_wrapper = build_optim_wrapper(
            self.model,
            dict(
                type='POAOptimWrapper',
                optimizer=dict(type='AdamW', lr=1e-4),
                clip_grad=dict(max_norm=1.5),
                constructor='POAOptimWrapperConstructor',
            ),
        )
        optimizer = self.optim_wrapper.optimizer
        self.runner = SimpleNamespace(
            model=self.model,
            optim_wrapper=self.optim_wrapper,
            iter=0,
            max_iters=1000,
            message_hub=MessageHub.get_instance('bench_step'),
            logger=MMLogger.get_current_instance(),
            train_dataloader=SimpleNamespace(batch_size=shape['batch']),
            param_schedulers=[
                CosineAnnealingLR(optimizer, T_max=1000, by_epoch=False),
                CosineAnnealingParamScheduler(optimizer, 'weight_decay', T_max=1000, by_epoch=False),
            ],
        )
        self.hooks = {
            'schedules': [POAScheduleHook(teacher_temp_iters=1000), ParamSchedulerHook()],
            'health': [RuntimeInfoHook(), RunHealthHook(interval=HEALTH_INTERVAL, entropy_begin=0)],
            'EMA': [TeacherEMAHook()],
        }
        for hook in chain.from_iterable(self.hooks.values()):
            if not isinstance(hook, RuntimeInfoHook):  # it would ask for what only a run has
                hook.before_train(self.runner)
        sizes = [shape['crops'][0]] * 2 + [shape['crops'][1]] * NUM_LOCAL
        self.views = [torch.randn(shape['batch'], 3, size, size) for size in sizes]
        grid = self.model.backbone.mask_grid((shape['crops'][0],) * 2)
        masks = torch.rand(shape['batch'], 2, *grid) < MASKED_SHARE
        masks[::2, 0] = masks[1::2, 1] = False  # one crop in two
        self.samples = [DataSample(mask=mask) for mask in masks]
        self.num_masked = int(masks.sum())

        self.watch = Stopwatch()
        self.watch.watch(self.model, 'teacher_targets', 'teacher')
        self.watch.watch(self.model, 'loss', 'heads and losses')
        self.watch.watch(
            self.model.backbone,
            'extract_features',
            lambda x, subnet=None, mask=None, part=None: 'elastic' if subnet else 'intact',
        )
        self.watch.watch(EarlyBackward, 'add', 'backward')
        self.watch.watch(TeacherTargets, 'health', 'health')

    def forward_backward(self, subnet: Subnet) -> dict[str, torch.Tensor]:
        self.model.deck = SimpleNamespace(deal=lambda: subnet, last=subnet)
        losses = self.model.loss(self.views, self.samples)
        with self.watch.phase('backward'):
            self.optim_wrapper.backward(losses['loss'])
        return losses

    def run(self, subnet: Subnet) -> float:
        """One step; its seconds."""
        start = time.perf_counter()
        with self.watch.phase('schedules'):
            for hook in self.hooks['schedules']:
                hook.before_train_iter(self.runner, 0)
        losses = self.forward_backward(subnet)
        with self.watch.phase('optimizer'):
            self.optim_wrapper.step()
            self.optim_wrapper.zero_grad()
        for name, hooks in self.hooks.items():
            with self.watch.phase(name):
                for hook in hooks:
                    hook.after_train_iter(self.runner, 0, outputs=losses)
        self.runner.iter += 1
        return time.perf_counter() - start

    def flops(self, subnet: Subnet) -> int:
        """Of the matrix products and convolutions of a step."""
        with FlopCounterMode(display=False, custom_mapping=FLOPS) as counter:
            self.forward_backward(subnet)
        self.optim_wrapper.zero_grad()
        return counter.get_total_flops()


def product_rate() -> float:
    """FLOP/s of a matrix product."""
    a = torch.randn(RATE_SIZE, RATE_SIZE)
    start = time.perf_counter()
    a @ a
    return 2 * RATE_SIZE**3 / (time.perf_counter() - start)


def subnets_of(shape: dict) -> list[Subnet]:
    """Smallest, largest and some between, the deck's median size among them."""
    widths, depths = shape['widths'], shape['depths']
    middle = (widths[len(widths) // 2], depths[len(depths) // 2])
    return [Subnet(*size) for size in ((min(widths), min(depths)), (min(widths), max(depths)), middle)] + [
        Subnet(max(widths), min(depths)),
        Subnet(max(widths), max(depths)),
    ]


def measure(name: str, repeats: int) -> dict:
    MMLogger.get_instance('benchmark', log_level='ERROR').setLevel('ERROR')
    keep_freed_memory()  # as tools/train.py does on a machine without GPU
    import psutil  # the light stack has none, and bench_gpu.py needs the rest of this file

    imported = psutil.Process().memory_info().rss
    shape = SHAPES[name]
    step = Step(shape)
    subnets = subnets_of(shape)
    flops = {subnet: step.flops(subnet) for subnet in subnets}
    for subnet in subnets:  # the optimizer's state, and memory as it stays from now on
        step.run(subnet)
    step.watch.seconds.clear()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    product_rate()  # a first one is slower
    rates, seconds, ratios = [product_rate()], defaultdict(list), defaultdict(list)
    for _ in track(range(repeats), 'steps', console=Console(stderr=True)):
        for subnet in subnets:
            spent = step.run(subnet)
            rates.append(product_rate())
            # Those before and after: what else the machine does changes from one minute to the next.
            floor = flops[subnet] / statistics.mean(rates[-2:])
            seconds[subnet].append(spent)
            ratios[subnet].append(spent / floor)
    rows = [
        dict(
            subnet=str(subnet),
            gflop=round(flops[subnet] / 1e9, 1),
            seconds=round(statistics.median(seconds[subnet]), 3),
            ratio=round(statistics.median(ratios[subnet]), 3),
        )
        for subnet in subnets
    ]
    steps = repeats * len(subnets)
    return dict(
        shape=name,
        masked_patches=step.num_masked,
        threads=torch.get_num_threads(),
        gflop_per_second=round(statistics.median(rates) / 1e9, 1),
        ratio=statistics.median(row['ratio'] for row in rows),
        median_seconds=statistics.median(row['seconds'] for row in rows),
        peak_rss_gib=round((peak - imported) / 2**30, 2),
        phases={phase: round(total / steps, 3) for phase, total in step.watch.seconds.items()},
        subnets=rows,
    )


def measure_pieces(name: str, repeats: int, batch_size: int | None, pieces: int) -> dict:
    """Steps in pieces against whole ones, by turns, in the time of the processor."""
    MMLogger.get_instance('benchmark', log_level='ERROR').setLevel('ERROR')
    keep_freed_memory()
    shape = SHAPES[name] | ({} if batch_size is None else dict(batch=batch_size))
    step, seconds = Step(shape), {}
    ratios = defaultdict(list)
    for turn in track(range(repeats + 1), 'rounds', console=Console(stderr=True)):
        for subnet in subnets_of(shape):
            for number in (1, pieces):
                step.model.micro_batches = number
                start = time.process_time()
                step.run(subnet)
                seconds[number] = time.process_time() - start
            if turn:  # the first one fetches memory
                ratios[subnet].append(seconds[pieces] / seconds[1])
    return dict(
        shape=name,
        batch_size=shape['batch'],
        micro_batches=pieces,
        threads=torch.get_num_threads(),
        pieces_ratio=round(statistics.median(chain.from_iterable(ratios.values())), 3),
        by_subnet={str(subnet): round(statistics.median(values), 3) for subnet, values in ratios.items()},
    )


def show(result: dict) -> None:
    console = Console()
    table = Table('subnet', 'GFLOP', 'seconds', 'seconds / floor', title=f'{result["shape"]}: a step')
    for row in result['subnets']:
        table.add_row(*map(str, row.values()))
    console.print(table)
    table = Table('phase', 'seconds a step', '%')
    total = sum(result['phases'].values())
    for phase, seconds in result['phases'].items():
        table.add_row(phase, f'{seconds:.3f}', f'{100 * seconds / total:.1f}')
    console.print(table)
    console.print({key: value for key, value in result.items() if not isinstance(value, (list, dict))})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--shape', choices=SHAPES, default='S4', help='default: S4')
    parser.add_argument('--repeats', type=int, default=3, help='steps of each subnet (default: 3)')
    parser.add_argument('--batch-size', type=int, help="images of a step with --micro-batches (default: the shape's)")
    parser.add_argument('--micro-batches', type=int, help='compare steps in so many pieces with whole ones')
    parser.add_argument('--json', type=Path, metavar='OUT', help='write the result there too')
    args = parser.parse_args()
    if args.micro_batches:
        result = measure_pieces(args.shape, args.repeats, args.batch_size, args.micro_batches)
        Console().print(result)
    else:
        result = measure(args.shape, args.repeats)
        show(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + '\n')


if __name__ == '__main__':
    main()
