"""Training loops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from mmengine.dist import broadcast_object_list, get_rank, get_world_size
from mmengine.registry import LOOPS
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import DataLoader

from poa_mm.checkpoint import CheckpointError
from poa_mm.recipes import COUNT

from ..datasets.resumable import ITERATION, ResumableSampler, SeededDataset, seed_everything
from .hooks.preemption_hook import outlive_signals


@LOOPS.register_module()
class ResumableTrainLoop(IterBasedTrainLoop):
    """mmengine's loop over iterations, after whose resume a run goes on exactly where it was.

    Killed at any iteration and resumed from any of its checkpoints, the run reads the same samples with the same
    augmentations and draws the same random numbers in the model as if nothing had happened. To this end, randomness
    is not stored but derived: that of a sample from the seed and its position in the run, that of the model (drop
    path ..) from the seed, the rank and the iteration. The number of workers plays no role, and to skip what has
    been read takes no time. :class:`SupernetCheckpointHook` stores the position.

    Workers survive the signals that :class:`PreemptionHook` listens to.

    Args:
        runner: The runner.
        dataloader: Config of the loader, with ``sampler=dict(type='ResumableSampler')``. Its
            ``persistent_workers`` makes no difference: workers live as long as the run.
        max_iters: Iterations of the whole run.
        allow_other_ranks: Whether a checkpoint of another number of ranks or batch size may be resumed. Each sample
            that is left of the pass over the data is then read once, but by another rank or in another iteration;
            the learning rate is left as it is. Default: False.
        allow_other_data: Whether a checkpoint of a run on other images may be resumed. The run goes on at the same
            position of another order of images. Default: False.
        images: Of a recipe: must have been counted. Default: None.
        **kwargs: Of mmengine's ``IterBasedTrainLoop``, such as ``val_interval``.

    Raises:
        TypeError: If the dataloader is not a config or has another sampler.
        ValueError: If ``images`` is ``'data'``, so that the lengths of the run are not known.
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: Mapping[str, Any],
        max_iters: int,
        allow_other_ranks: bool = False,
        allow_other_data: bool = False,
        images: int | str | None = None,
        **kwargs,
    ):
        if images == COUNT:
            raise ValueError(
                f'the lengths of this recipe follow from the number of images (images={COUNT!r}), which tools/train.py '
                'counts; elsewhere, call poa_mm.engine.data_config.count_images(cfg) before the runner is built'
            )
        self.allow_other_ranks = allow_other_ranks
        self.allow_other_data = allow_other_data
        self._start = (0, 0)  # an iteration, and how many samples all ranks have read before it
        super().__init__(runner, _build_loader(runner, dataloader), max_iters, **kwargs)
        self._say_if_images_repeat()

    def _say_if_images_repeat(self) -> None:
        images = len(self.dataloader.sampler)
        if images < self.samples_per_iter:
            self.runner.logger.warning(
                f'{images} images are there for batches of {self.samples_per_iter} in all: one and the same is several '
                'times in a batch, and KoLeo and Sinkhorn-Knopp need different ones.'
            )

    @property
    def samples_per_iter(self) -> int:
        """Samples that all ranks read in an iteration."""
        return self.dataloader.batch_size * get_world_size()

    def samples_before(self, iteration: int) -> int:
        """How many samples all ranks have read before ``iteration``."""
        start, samples = self._start
        return samples + (iteration - start) * self.samples_per_iter

    def state_dict(self, iteration: int) -> dict[str, int | str]:
        """What a resume before ``iteration`` needs: the same on every rank."""
        source = getattr(self.dataloader.dataset.dataset, 'source', None)
        return dict(
            seed=self.dataloader.sampler.seed,
            samples=self.samples_before(iteration),
            batch_size=self.dataloader.batch_size,
            world_size=get_world_size(),
            images=len(self.dataloader.dataset),
            digest=getattr(source, 'digest', ''),  # of the names of the images
        )

    def load_state_dict(self, state: Mapping[str, int | str]) -> None:
        """Go on where ``state`` was taken, at the loop's present iteration.

        Raises:
            CheckpointError: If the batches or the images were others, and this is not allowed.
        """
        own = self.state_dict(self._iter)
        missing = own.keys() - state.keys() - {'images', 'digest'}  # which older checkpoints lack
        if missing:
            raise CheckpointError(f'the position in the data lacks {sorted(missing)}; got {dict(state)}')
        if not self.allow_other_ranks and any(state[key] != own[key] for key in ('world_size', 'batch_size')):
            raise CheckpointError(
                'the checkpoint is of a run with {world_size} ranks and batches of {batch_size}, '.format(**state)
                + 'this one has {world_size} and {batch_size}; '.format(**own)
                + 'train_cfg.allow_other_ranks=True resumes it with other batches than it would have had'
            )
        self._compare_data(state, own)
        self.dataloader.sampler.seed = state['seed']
        self._start = (self._iter, state['samples'])

    def _compare_data(self, state: Mapping[str, int | str], own: Mapping[str, int | str]) -> None:
        """Data that has changed has another order, and a recipe in epochs another length."""
        if 'images' not in state:
            return
        if state['images'] != own['images']:
            difference = f'{state["images"]:,} images, the data has {own["images"]:,} now'
        elif state['digest'] and own['digest'] and state['digest'] != own['digest']:
            difference = f'{state["images"]:,} images of other names'
        else:
            return
        if not self.allow_other_data:
            raise CheckpointError(
                f'the checkpoint is of a run on {difference}; --allow-other-data '
                '(train_cfg.allow_other_data=True) goes on with what is there'
            )
        self.runner.logger.warning(f'Goes on from a run on {difference}; the order of the images is another.')

    def run(self) -> nn.Module:
        """Train, as the parent class does, but begin with the sample that is due."""
        images, iterations = len(self.dataloader.dataset), self._max_iters
        self.runner.logger.info(
            f'{images:,} images; the run of {iterations:,} iterations of {self.samples_per_iter:,} reads each '
            f'{iterations * self.samples_per_iter / images:.1f} times'
        )
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        self.dataloader.sampler.start = self.samples_before(self._iter)
        # Some versions of the parent class have begun to read in the constructor, where the start was not yet known.
        self.dataloader_iterator = iter(self.dataloader)
        try:
            while self._iter < self._max_iters and not self.stop_training:
                self.runner.model.train()
                self.run_iter(next(self.dataloader_iterator))
                self._decide_current_val_interval()
                due = self._iter % self.val_interval == 0 or self._iter == self._max_iters
                if self.runner.val_loop is not None and self._iter >= self.val_begin and due:
                    self.runner.val_loop.run()
        finally:
            # Ends the workers now. At the exit of Python they would get a SIGTERM, which they survive for a while.
            self.dataloader_iterator = None
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_iter(self, data_batch: Sequence[dict]) -> None:
        """Train one batch with the randomness of the iteration."""
        seed_everything(self.dataloader.sampler.seed, ITERATION, get_rank(), self._iter)
        super().run_iter(data_batch)


def _build_loader(runner: Runner, config: Mapping[str, Any]) -> DataLoader:
    """Build a loader of samples with their own randomness, in an order that all ranks share."""
    if not isinstance(config, Mapping):
        raise TypeError(f'ResumableTrainLoop builds its dataloader itself, from a config; got {type(config).__name__}')
    seed = [runner.seed]  # may differ by rank
    broadcast_object_list(seed)
    loader = runner.build_dataloader(
        {
            **config,
            'dataset': dict(type=SeededDataset, dataset=config['dataset']),
            'sampler': {'seed': seed[0], **config['sampler']},
            'persistent_workers': False,  # there is but one pass over the stream, and it never ends
        },
        seed=runner.seed,
    )
    if not isinstance(loader.sampler, ResumableSampler):
        raise TypeError(
            "ResumableTrainLoop needs train_dataloader.sampler=dict(type='ResumableSampler'); "
            f'got {type(loader.sampler).__name__}'
        )
    loader.worker_init_fn = partial(_init_worker, then=loader.worker_init_fn)
    return loader


def _init_worker(worker_id: int, then: partial | None) -> None:
    outlive_signals(worker_id)
    if then is not None:
        then(worker_id)
