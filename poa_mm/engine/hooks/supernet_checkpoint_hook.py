"""Checkpoints that say what they hold."""

from __future__ import annotations

from mmengine.dist import broadcast_object_list
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from poa_mm.checkpoint import SUPERNET_KEY, describe_supernet
from poa_mm.elastic import SubnetDeck
from poa_mm.models.selfsup.frozen_teacher import check_same, drop

from ..loops import ResumableTrainLoop
from .model import model_of
from .once import OnceHook


@HOOKS.register_module()
class SupernetCheckpointHook(OnceHook):
    """Writes into each checkpoint, as plain data, what the network is and where the run is.

    With the network's description, extraction and evaluation need no config and execute nothing. The deck of
    subnets is seeded with the run's seed. After a resume, it goes on where it was, on every rank, and so does the
    data of a :class:`~poa_mm.engine.ResumableTrainLoop`.

    A run that only starts from a file has a frozen teacher of its own, not that of the run which wrote the file. One
    that is resumed goes on with that of the checkpoint, with which the file that the config names is compared.
    """

    _loaded: dict | None = None

    def before_run(self, runner: Runner) -> None:
        """Seed the deck with rank 0's seed: a runner's own may differ by rank, the deck's state must not."""
        super().before_run(runner)
        deck = self._deck(runner)
        if deck is not None and runner.seed is not None:
            seed = [runner.seed]
            broadcast_object_list(seed)
            deck.seed = seed[0]

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep the entry ``poa`` until it is known whether this is a resume; look at the frozen teacher.

        Raises:
            CheckpointError: If a resumed run's frozen teacher is another one now.
        """
        self._loaded = checkpoint.get(SUPERNET_KEY, {})
        weights, teacher = checkpoint.get('state_dict'), model_of(runner).frozen_teacher
        if not runner.cfg.get('resume'):
            drop(weights or {})
        elif teacher is not None:
            check_same(teacher, weights or {})

    def before_train(self, runner: Runner) -> None:
        """Restore deck and data of a resumed run; one that only starts from weights (``load_from``) has its own.

        Raises:
            CheckpointError: If the number of ranks or the batch size is another than in the checkpoint.
        """
        if not self._loaded or runner.iter == 0:
            return
        for name, part in self._parts(runner).items():
            if name in self._loaded:
                part.load_state_dict(self._loaded[name])

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the entry ``poa``. Runs on rank 0, if not on all: all state is that of all ranks."""
        # The two places where mmengine's Runner looks for a data preprocessor.
        model = {'data_preprocessor': runner.cfg.get('data_preprocessor') or {}, **runner.cfg.model}
        entry = describe_supernet(model)
        parts = self._parts(runner)
        if 'deck' in parts:
            entry['deck'] = parts['deck'].state_dict()
        if 'data' in parts:
            entry['data'] = parts['data'].state_dict(checkpoint['meta']['iter'])
        if 'recipe' in runner.cfg:
            entry['recipe'] = runner.cfg.recipe.to_dict()
        checkpoint[SUPERNET_KEY] = entry

    def _parts(self, runner: Runner) -> dict[str, SubnetDeck | ResumableTrainLoop]:
        """What goes on after a resume, by its name in the checkpoint."""
        deck, loop = self._deck(runner), runner.train_loop
        parts = {} if deck is None else {'deck': deck}
        return parts | ({'data': loop} if isinstance(loop, ResumableTrainLoop) else {})

    @staticmethod
    def _deck(runner: Runner) -> SubnetDeck | None:
        return model_of(runner).deck
