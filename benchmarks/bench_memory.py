"""Peak device memory of a training step under AMP, estimated without a GPU, beside the straightforward joint step.

A step of the shipped ViT-L recipe runs on fake tensors, which have shapes but no data: every storage that an operation
makes is booked when it appears and when it is freed, and the largest sum is the peak. Two implementations of the same
loss go through the same books: POA as shipped, and `JointPOA` below, which does what the formulas say: logits of all
heads as matrices, plain losses in float32, the graphs of both students until one backward pass of the sum.

    python benchmarks/bench_memory.py [--config configs/poa/vitl_in1k.py] [--batch-size 50] [--micro-batches 1]
        [--with-cp] [--validate] [--json OUT]

The JSON has `ratio` (shipped over joint) and `peak_gib` with the elastic student at its largest, which is the peak of a
run, the categories of both peaks in GiB, and the same with the elastic student at its smallest. `--with-cp` gives the
shipped step activation checkpointing, `--micro-batches` lets its batch go through in so many pieces; the joint one has
neither.

Assumptions:

- One GPU of DistributedDataParallel without `gradient_as_bucket_view`: gradients exist a second time in its buckets.
- AdamW in float32, its state made by earlier steps. The optimizer's own step comes when the activations are gone and
  is not the peak; it is not run.
- Types are those of autocast on the CPU with float16, which for the operations of this model agree with CUDA's;
  attention is fused and keeps its inputs, its output and one float32 a row.
- The average number of masked patches of the recipe. Blocks of 512 bytes, as CUDA's allocator gives them, but no
  fragmentation, no workspace within an operation (cuBLAS), no context of CUDA and no buffers of NCCL.

`--validate` compares the estimate of a small float32 step with the resident memory of a process that runs it, where
workspace and fragmentation count: about 0.3 GiB more for both implementations, 14% and 7%. It runs without
checkpointing whatever `--with-cp` says.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import weakref
from collections import Counter
from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmpretrain.structures import DataSample
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.weak import WeakIdKeyDictionary

import poa_mm  # noqa: F401  registers the models
from poa_mm.elastic import Subnet
from poa_mm.models.heads import MultiPrototypeHead
from poa_mm.models.losses import class_loss, patch_loss, same_view_loss
from poa_mm.models.selfsup import POA
from poa_mm.models.selfsup.batch import MultiCropBatch

ROOT = Path(__file__).parents[1]
BLOCK = 512  # bytes, the grain of CUDA's allocator
GIB = 2**30
LOCAL_SIZE, NUM_LOCAL = 96, 8
MASKED_SHARE = 0.15  # of all global patches: half of the crops, 0.1 to 0.5 of each
SMALL = dict(  # S4 of bench_step.py
    type='POA',
    backbone=dict(
        type='ElasticVisionTransformer',
        arch=dict(embed_dims=384, num_layers=12, num_heads=6, feedforward_channels=1536),
        widths=(192, 256, 320, 384),
        depths=range(6, 13),
    ),
    head=dict(type='MultiPrototypeHead'),
)


aten = torch.ops.aten
BOOLEAN_INDEXING = (aten.index.Tensor, aten.index_put.default, aten._index_put_impl_.default)


@dataclass(eq=False)
class Allocation:
    """A storage: its size in bytes and what it is for."""

    size: int
    category: str


class MemoryBooks(TorchDispatchMode):
    """Books every storage of the operations in its scope, by category.

    What a backward pass makes is ``'backward, temporary'``, a copy of a weight in another type ``'weights, cast'``,
    anything else what the innermost ``category`` in force says.
    """

    def __init__(self):
        super().__init__()
        self.category_stack = ['other']
        self.events: list[tuple[Allocation, int]] = []
        self.allocations = WeakIdKeyDictionary()

    @contextmanager
    def category(self, name: str):
        self.category_stack.append(name)
        yield
        self.category_stack.pop()

    def within(self, name: str, function):
        """``function`` with its storages in the category ``name``."""

        def booked(*args, **kwargs):
            with self.category(name):
                return function(*args, **kwargs)

        return booked

    def relabel(self, tensor: Tensor, category: str) -> None:
        if allocation := self.allocations.get(tensor.untyped_storage()):  # not booked outside the scope
            allocation.category = category

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_flatten(out)[0]:
            if isinstance(tensor, Tensor):
                self._book(tensor, func, args)
        return out

    def _book(self, tensor: Tensor, func, args: Sequence) -> None:
        storage = tensor.untyped_storage()
        if storage in self.allocations:
            return
        allocation = Allocation(-(-storage.nbytes() // BLOCK) * BLOCK, self._category_of(func, args))
        self.allocations[storage] = allocation
        self.events.append((allocation, 1))
        weakref.finalize(storage, self.events.append, (allocation, -1))

    def _category_of(self, func, args: Sequence) -> str:
        if torch._C._current_graph_task_id() != -1:
            return 'backward, temporary'
        if func is aten._to_copy.default:
            source = self.allocations.get(args[0].untyped_storage())
            if source is not None and source.category in ('parameters', 'teacher'):
                return 'weights, cast'
        return self.category_stack[-1]

    def peak(self) -> dict[str, int]:
        """Bytes by category at the moment of the largest sum, the largest category first."""
        total = highest = 0
        current, at_peak = Counter(), Counter()
        for allocation, sign in self.events:
            total += sign * allocation.size
            current[allocation.category] += sign * allocation.size
            if total > highest:
                highest, at_peak = total, current.copy()
        return {category: size for category, size in at_peak.most_common() if size}


class SharedFakeTensorMode(FakeTensorMode):
    """A mode that copies of its tensors share, such as the teacher's."""

    def __deepcopy__(self, memo) -> SharedFakeTensorMode:
        return self


class FixedMasks(TorchDispatchMode):
    """Lets a boolean mask select a fixed share of its places: how many True it has, a fake tensor cannot tell."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is aten.nonzero.default:
            return args[0].new_zeros(num_masked(args[0]), args[0].ndim, dtype=torch.long)
        if func in BOOLEAN_INDEXING:
            places = []
            for index in args[1]:
                if isinstance(index, Tensor) and index.dtype == torch.bool:
                    places += [index.new_zeros(num_masked(index), dtype=torch.long) for _ in range(index.ndim)]
                else:
                    places.append(index)
            args = (args[0], places, *args[2:])
        return func(*args, **(kwargs or {}))


class JointPOA(POA):
    """POA as its formulas are written: every logit in memory, both students in one graph."""

    def loss(self, inputs, data_samples=None) -> dict[str, Tensor]:
        grid = self.backbone.mask_grid(tuple(inputs[0].shape[-2:]))
        batch = MultiCropBatch.collate(inputs, data_samples, grid, masked=True)
        targets = self.teacher_targets(batch)
        intact = self.student_logits(batch, None)
        elastic = self.student_logits(batch, self.deck.deal())
        loss = self.weight_is * self.cross_view_loss(batch, targets, intact[1:])
        loss = loss + self.weight_es1 * self.cross_view_loss(batch, targets, elastic[1:])
        num_global = len(batch.global_views)
        pairs = list(zip(intact[1], elastic[1]))
        same_view = sum(sum(same_view_loss(*pair, num_global, self.student_temp)) for pair in pairs)
        loss = loss + self.weight_es2 * same_view / len(pairs)
        koleo = sum(self.koleo(crop) for features in (intact[0], elastic[0]) for crop in features.chunk(2))
        return {'loss': loss + self.koleo_weight * koleo / 2}

    @torch.no_grad()
    def teacher_targets(self, batch: MultiCropBatch) -> tuple[list[Tensor], list[Tensor]]:
        features = self.teacher['backbone'].extract_features(batch.global_views)
        num_cls = len(features.cls)
        logits = plain_logits(self.teacher['head'], torch.cat([features.cls, features.patch[batch.masks]]))
        cls = [centre(head[:num_cls], self.teacher_temp) for centre, head in zip(self.class_centering, logits)]
        return cls, [centre(head[num_cls:], self.teacher_temp) for centre, head in zip(self.patch_centering, logits)]

    def student_logits(self, batch: MultiCropBatch, subnet: Subnet | None) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Class features of the global crops, logits of class tokens and of masked patches by head."""
        features, patches = self.backbone.extract_features(batch.global_views, subnet, batch.masks)
        local = self.backbone.extract_features(batch.local_views, subnet).cls
        logits = plain_logits(self.head, torch.cat([features, local, patches[batch.masks]]))
        num_cls = sum(batch.num_rows.values())
        return features, [head[:num_cls] for head in logits], [head[num_cls:] for head in logits]

    def cross_view_loss(self, batch: MultiCropBatch, targets, logits) -> Tensor:
        masked = batch.masks.sum(dim=1, keepdim=True).clamp(min=1)
        weights = (1 / masked).expand_as(batch.masks)[batch.masks]
        losses = [sum(class_loss(*pair, self.student_temp)) for pair in zip(targets[0], logits[0])]
        losses += [
            patch_loss(*pair, weights, len(batch.masks), self.student_temp) for pair in zip(targets[1], logits[1])
        ]
        return sum(losses) / len(targets[0])


def plain_logits(head: MultiPrototypeHead, rows: Tensor) -> list[Tensor]:
    """Of all rows on each head, in the type of the autocast."""
    return [functional.linear(*pair) for pair in zip(head.embed(rows), head.matrices())]


IMPLEMENTATIONS = {'shipped': POA, 'joint': JointPOA}


def step(
    model_cfg: dict, kind: type[POA], batch_size: int, subnet: Subnet, dtype: torch.dtype | None, books: MemoryBooks
) -> None:
    """Build the model and what training keeps beside it, then run one forward and backward pass."""
    with books.category('parameters'):
        model = MODELS.build({**model_cfg, 'type': kind})
    model.train()
    for param in model.teacher.parameters():
        books.relabel(param, 'teacher')
    trained = [param for param in model.parameters() if param.requires_grad]
    with books.category('optimizer'):  # ones: untouched zeros would not be resident
        kept = [torch.ones_like(param) for param in trained for _ in range(2)]
    with books.category('buckets of DDP'):
        kept += [torch.ones_like(param) for param in trained]
    for param in trained:
        param.register_hook(lambda grad: books.relabel(grad, 'gradients'))
    model.teacher_targets = books.within('teacher targets', model.teacher_targets)
    extract = books.within('activations', model.backbone.extract_features)
    # Which samples skip a branch is not known here either: as many of each piece as of a whole batch.
    model.backbone.extract_features = lambda x, subnet=None, mask=None, part=None: extract(x, subnet, mask)
    model.deck = SimpleNamespace(deal=lambda: subnet)
    size = model.backbone.img_size
    with books.category('images and masks'):
        views = [torch.randn(batch_size, 3, *size) for _ in range(2)]
        views += [torch.randn(batch_size, 3, LOCAL_SIZE, LOCAL_SIZE) for _ in range(NUM_LOCAL)]
        samples = [DataSample(mask=mask) for mask in masks(batch_size, model.backbone.mask_grid(size))]
    autocast = nullcontext() if dtype is None else torch.autocast('cpu', dtype=dtype)
    with autocast, books.category('heads, logits and losses'):
        loss = model.loss(views, samples)['loss']
    loss.backward()


def num_masked(mask: Tensor) -> int:
    return round(MASKED_SHARE * mask.numel())


def masks(batch_size: int, grid: tuple[int, int]) -> Tensor:
    """Masks ``(B, 2, rows, columns)``, each with its share of masked patches in its first places."""
    places = torch.arange(grid[0] * grid[1])
    return (places < num_masked(places)).view(*grid).expand(batch_size, 2, *grid)


def estimate(model_cfg: dict, kind: type[POA], batch_size: int, subnet: Subnet, dtype: torch.dtype | None) -> dict:
    """Bytes by category at the peak of a step on fake tensors."""
    with SharedFakeTensorMode(), MemoryBooks() as books, FixedMasks():
        step(model_cfg, kind, batch_size, subnet, dtype, books)
    return books.peak()


def compare(
    model_cfg: dict, batch_size: int, subnet: Subnet, dtype: torch.dtype | None, with_cp: bool, micro_batches: int
) -> dict:
    """Peaks of both implementations, in GiB; ``with_cp`` and ``micro_batches`` are for the shipped one."""
    peaks = {}
    for name, kind in IMPLEMENTATIONS.items():
        shipped = name == 'shipped'
        backbone = {**model_cfg['backbone'], 'with_cp': with_cp and shipped}
        options = dict(backbone=backbone, micro_batches=micro_batches if shipped else 1)
        peaks[name] = estimate({**model_cfg, **options}, kind, batch_size, subnet, dtype)
    totals = {name: sum(peak.values()) for name, peak in peaks.items()}
    return dict(
        subnet=str(subnet),
        ratio=round(totals['shipped'] / totals['joint'], 3),
        peak_gib=round(totals['shipped'] / GIB, 2),
        joint_peak_gib=round(totals['joint'] / GIB, 2),
        categories={name: {key: round(size / GIB, 2) for key, size in peak.items()} for name, peak in peaks.items()},
    )


def validate(batch_size: int = 4) -> dict:
    """The estimate of a small step in float32 beside what a process that runs it holds, in GiB."""
    subnet = Subnet(384, 12)
    found = {}
    for name, kind in IMPLEMENTATIONS.items():
        expected = sum(estimate(SMALL, kind, batch_size, subnet, None).values())
        context = multiprocessing.get_context('spawn')
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=resident_peak, args=(kind, batch_size, subnet, sender))
        process.start()
        resident = receiver.recv()
        process.join()
        found[name] = dict(
            estimate=round(expected / GIB, 3), resident=round(resident / GIB, 3), quotient=round(expected / resident, 3)
        )
    return found


def resident_peak(kind: type[POA], batch_size: int, subnet: Subnet, sender) -> None:
    """Run the small step; send what the process held at most beyond what it held before."""
    init_default_scope('mmpretrain')
    import psutil  # the light stack has none, and bench_gpu.py needs the rest of this file

    before = psutil.Process().memory_info().rss
    step(SMALL, kind, batch_size, subnet, None, MemoryBooks())
    sender.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)


def measure(config: Path, batch_size: int, with_cp: bool, micro_batches: int) -> dict:
    """Both peaks with the largest elastic student, which is that of a run, and with the smallest."""
    cfg = Config.fromfile(config)
    model_cfg = {key: value for key, value in cfg.model.items() if key != 'data_preprocessor'}
    with FakeTensorMode():
        space = MODELS.build(model_cfg['backbone']).space
    largest, smallest = space.largest, next(iter(space))
    options = dict(dtype=torch.float16, with_cp=with_cp, micro_batches=micro_batches)
    result = compare(model_cfg, batch_size, largest, **options)
    return dict(
        config=config.stem,
        batch_size=batch_size,
        with_cp=with_cp,
        micro_batches=micro_batches,
        **result,
        smallest=compare(model_cfg, batch_size, smallest, **options),
    )


def show(result: dict) -> None:
    console = Console()
    for part in (result, result['smallest']):
        shipped, joint = part['categories']['shipped'], part['categories']['joint']
        title = (
            f'{result["config"]}, {result["batch_size"]} images a GPU, elastic student {part["subnet"]}: GiB at peak'
        )
        table = Table('category', 'shipped', 'joint', title=title)
        for name in sorted(shipped | joint, key=lambda name: -joint.get(name, 0)):
            table.add_row(name, *(f'{column.get(name, 0):.2f}' for column in (shipped, joint)))
        table.add_row('all', f'{part["peak_gib"]:.2f}', f'{part["joint_peak_gib"]:.2f}')
        console.print(table)
        console.print(f'ratio {part["ratio"]}')
    if 'validation' in result:
        console.print('estimate and resident memory of a small step, GiB:', result['validation'])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', type=Path, default=ROOT / 'configs' / 'poa' / 'vitl_in1k.py', help='default: ViT-L')
    parser.add_argument('--batch-size', type=int, default=50, help='images a GPU (default: 50)')
    parser.add_argument('--micro-batches', type=int, default=1, help='pieces of the shipped step (default: 1)')
    parser.add_argument('--with-cp', action='store_true', help='activation checkpointing in the shipped step')
    parser.add_argument('--validate', action='store_true', help='compare with resident memory (3 GiB, a minute)')
    parser.add_argument('--json', type=Path, metavar='OUT', help='write the result there too')
    args = parser.parse_args()
    init_default_scope('mmpretrain')
    result = measure(args.config, args.batch_size, args.with_cp, args.micro_batches)
    if args.validate:
        result['validation'] = validate()
    show(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + '\n')


if __name__ == '__main__':
    main()
