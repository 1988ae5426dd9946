"""A step of the ViT-L recipe on any device, with the time of its phases: what bench_gpu.py measures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import torch
from bench_step import FLOPS, Stopwatch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from torch.utils.flop_counter import FlopCounterMode

from poa_mm.elastic import Subnet
from poa_mm.engine.hooks import CompileBlocksHook, TeacherEMAHook
from poa_mm.models import POA
from poa_mm.models.selfsup.early_backward import EarlyBackward

CONFIG = Path(__file__).parents[1] / 'configs' / 'poa' / 'vitl_in1k.py'


class EventWatch(Stopwatch):
    """Seconds by phase on the device's own clock: nothing waits for it until they are asked for."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.device = device
        self.marks: list[tuple[str, list[int], object, object]] = []
        self.open: list[list[int]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        if self.device.type != 'cuda':
            with super().phase(name):
                yield
            return
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        inner: list[int] = []
        self.open.append(inner)
        start.record()
        yield
        end.record()
        self.open.pop()
        self.marks.append((name, inner, start, end))
        if self.open:
            self.open[-1].append(len(self.marks) - 1)

    def collect(self) -> dict[str, float]:
        if self.marks:
            torch.cuda.synchronize()
            spent = [start.elapsed_time(end) / 1000 for _, _, start, end in self.marks]
            for (name, inner, *_), seconds in zip(self.marks, spent):
                self.seconds[name] += seconds - sum(spent[index] for index in inner)
            self.marks.clear()
        return dict(self.seconds)


class Step:
    """A model of the recipe on a device, with all that a step needs.

    Args:
        model_cfg: Of the recipe.
        kind: ``POA`` or the joint baseline.
        device: Where to.
        dtype: ``'bfloat16'`` or ``'float16'``.
        compiled: Compile the blocks.
    """

    def __init__(self, model_cfg: dict, kind: type[POA], device: torch.device, dtype: str, compiled: bool):
        torch.manual_seed(0)
        self.device, self.dtype = device, getattr(torch, dtype)
        self.model = MODELS.build({**model_cfg, 'type': kind}).to(device)
        self.model.train()
        cfg = Config.fromfile(CONFIG).optim_wrapper
        cfg.dtype = dtype
        self.optim_wrapper = build_optim_wrapper(self.model, cfg)
        self.runner = SimpleNamespace(
            model=self.model,
            optim_wrapper=self.optim_wrapper,
            iter=0,
            max_iters=1000,
            message_hub=MessageHub.get_instance('bench_gpu'),
        )
        self.ema = TeacherEMAHook()
        self.ema.before_train(self.runner)
        if compiled:
            CompileBlocksHook(backend='inductor' if device.type == 'cuda' else 'eager').before_train(self.runner)
        self.watch = EventWatch(device)
        self.watch.watch(self.model, 'teacher_targets', 'teacher')
        self.watch.watch(
            self.model.backbone,
            'extract_features',
            lambda x, subnet=None, mask=None, part=None: 'elastic' if subnet else 'intact',
        )

    def loss(self, data: dict, subnet: Subnet) -> torch.Tensor:
        self.model.deck = SimpleNamespace(deal=lambda: subnet, last=subnet)
        # On a CPU the optimizer's wrapper has none.
        autocast = nullcontext() if self.device.type == 'cuda' else torch.autocast('cpu', dtype=self.dtype)
        with self.optim_wrapper.optim_context(self.model), autocast:
            return self.model.loss(**data)['loss']

    def run(self, batch: dict, subnet: Subnet) -> None:
        with self.watch.phase('preprocessing'):
            data = self.model.data_preprocessor(batch, True)
        with self.watch.phase('heads and losses'), early_backward_in(self.watch):
            loss = self.loss(data, subnet)
        with self.watch.phase('backward'):
            self.optim_wrapper.backward(loss)
        with self.watch.phase('optimizer'):
            self.optim_wrapper.step()
            self.optim_wrapper.zero_grad()
        with self.watch.phase('EMA'):
            self.ema.after_train_iter(self.runner, 0)
        self.runner.iter += 1

    def flops(self, batch: dict, subnet: Subnet) -> int:
        """Of the matrix products and convolutions of a step."""
        with FlopCounterMode(display=False, custom_mapping=FLOPS) as counter:
            self.optim_wrapper.backward(self.loss(self.model.data_preprocessor(batch, True), subnet))
        self.optim_wrapper.zero_grad()
        return counter.get_total_flops()


@contextmanager
def early_backward_in(watch: Stopwatch) -> Iterator[None]:
    """Count the backward passes that a loss takes on its way as such."""
    add = EarlyBackward.add

    def timed(backward: EarlyBackward, loss: torch.Tensor) -> None:
        with watch.phase('backward'):
            add(backward, loss)

    EarlyBackward.add = timed
    try:
        yield
    finally:
        EarlyBackward.add = add
