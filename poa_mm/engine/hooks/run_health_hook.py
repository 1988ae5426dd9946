"""Whether a run is well, in words."""

from __future__ import annotations

import math
import re

from mmengine.dist import get_world_size
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from poa_mm.elastic import Subnet

from .model import model_of
from .once import OnceHook

MAX_DATA_WAIT = 0.3  # share of the time above which data loading counts as the bottleneck
ENTROPY_MARGIN = 0.01  # how close to 0 or log K, as a share of log K, is a collapse
ENTROPY = re.compile(r'train/teacher_entropy_(\d+)')


def size_classes(backbone: nn.Module) -> dict[Subnet, str]:
    """The third of its space, ordered by parameters, that each subnet belongs to: small, medium or large."""
    ordered = sorted(backbone.space, key=lambda subnet: backbone.cost(subnet).params)
    names = ('small', 'medium', 'large')
    return {subnet: names[3 * place // len(ordered)] for place, subnet in enumerate(ordered)}


@HOOKS.register_module()
class RunHealthHook(OnceHook):
    """Logs how fast a run is and warns when it waits for data or its teacher collapses.

    Every ``interval`` iterations, ``images_per_s`` (of all ranks) and ``data_wait`` (share of the time in which this
    rank waits for its batch, 0 to 1) over these iterations go to the log, from the times that mmengine's
    ``IterTimerHook`` takes. The first iteration after a start, in which workers start too, does not count.

    If the model's loss returns ``teacher_entropy_{K}``, the mean entropy in nats of the teacher's targets on the head
    with K prototypes, its mean over these iterations is held against its bounds: at 0 each target is one prototype
    (commonly the same one), at log K all targets are uniform, and in both cases there is nothing to learn.

    ``loss_small``, ``loss_medium`` and ``loss_large`` are the loss of the iterations whose elastic student was among
    the smallest, middle or largest third of the subnets by parameters; mmengine logs their mean over its window.

    A warning is given when something goes wrong, and again only after it was well in between.

    Args:
        interval: Iterations between looks. Default: 50.
        entropy_begin: Iteration before which no collapse is looked for: targets of an untrained teacher are near
            one of the bounds. Default: 1000.

    Raises:
        ValueError: If ``interval`` is below 1.
    """

    priority = 55  # after the timer, before the logger

    def __init__(self, interval: int = 50, entropy_begin: int = 1000):
        if interval < 1:
            raise ValueError(f'interval {interval} is below 1')
        self.interval = interval
        self.entropy_begin = entropy_begin

    def before_train(self, runner: Runner) -> None:
        """Start with nothing seen."""
        self._warned: set[str] = set()
        self._first = runner.iter
        self._times: list[tuple[float, float]] = []
        deck = getattr(model_of(runner), 'deck', None)
        self._size_class = size_classes(model_of(runner).backbone) if deck else {}

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Note the times; look at the run every ``interval`` iterations."""
        hub = runner.message_hub
        if self._size_class and 'loss' in (outputs or {}):
            name = self._size_class[model_of(runner).deck.last]
            hub.update_scalar(f'train/loss_{name}', outputs['loss'])
        if runner.iter > self._first and 'train/time' in hub.log_scalars:
            self._times.append(tuple(hub.get_scalar(f'train/{name}').current() for name in ('time', 'data_time')))
        if self.every_n_train_iters(runner, self.interval):
            if self._times:
                self._look_at_speed(runner)
            if runner.iter >= self.entropy_begin:
                self._look_at_teacher(runner)

    def _look_at_speed(self, runner: Runner) -> None:
        total, waited = map(sum, zip(*self._times))
        images = len(self._times) * runner.train_dataloader.batch_size * get_world_size()
        self._times.clear()
        share = waited / total
        runner.message_hub.update_scalar('train/images_per_s', images / total)
        runner.message_hub.update_scalar('train/data_wait', share)
        self._warn(
            runner,
            'data_wait',
            share > MAX_DATA_WAIT,
            f'Data loading is the bottleneck: {share:.0%} of the time is spent waiting for it. More workers '
            '(train_dataloader.num_workers), a faster disk or smaller image files help.',
        )

    def _look_at_teacher(self, runner: Runner) -> None:
        for name, history in runner.message_hub.log_scalars.items():
            match = ENTROPY.fullmatch(name)
            if match is None:
                continue
            number = int(match[1])
            entropy, highest = history.mean(self.interval), math.log(number)
            found = f'on {number} prototypes, the mean entropy of its targets is {entropy:.3f} nats'
            margin = ENTROPY_MARGIN * highest
            text = f'The teacher collapses onto single prototypes: {found}, near 0.'
            self._warn(runner, f'{name} low', entropy < margin, text)
            text = f'The teacher collapses to uniform targets: {found}, near the highest of {highest:.3f}.'
            self._warn(runner, f'{name} high', entropy > highest - margin, text)

    def _warn(self, runner: Runner, name: str, wrong: bool, text: str) -> None:
        if wrong and name not in self._warned:
            runner.logger.warning(text)
        (self._warned.add if wrong else self._warned.discard)(name)
