"""Checkpoints that say what they hold."""

from __future__ import annotations

from mmengine.dist import broadcast_object_list
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..checkpoint import SUPERNET_KEY, describe_supernet
from .model import model_of


@HOOKS.register_module()
class SupernetCheckpointHook(Hook):
    """Writes into each checkpoint, as plain data, the network's description and the state of the deck.

    With the description, extraction and evaluation need no config and execute nothing. The deck is
    seeded with the run's seed and goes on where it was after a resume, on every rank.
    """

    _loaded: dict | None = None

    def before_run(self, runner: Runner) -> None:
        """Seed the deck with rank 0's seed: a runner's own may differ by rank, the deck's state must not."""
        deck = self._deck(runner)
        if deck is not None and runner.seed is not None:
            seed = [runner.seed]
            broadcast_object_list(seed)
            deck.seed = seed[0]

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep the deck's state until it is known whether this is a resume."""
        self._loaded = checkpoint.get(SUPERNET_KEY, {}).get('deck')

    def before_train(self, runner: Runner) -> None:
        """Restore the deck of a resumed run; one that only starts from weights (``load_from``) has its own."""
        deck = self._deck(runner)
        if deck is not None and self._loaded is not None and runner.iter > 0:
            deck.load_state_dict(self._loaded)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the entry ``poa``. Runs on rank 0 only, where the deck's state is that of all ranks."""
        deck = self._deck(runner)
        # The two places where mmengine's Runner looks for a data preprocessor.
        model = {'data_preprocessor': runner.cfg.get('data_preprocessor') or {}, **runner.cfg.model}
        entry = describe_supernet(model)
        checkpoint[SUPERNET_KEY] = entry | ({'deck': deck.state_dict()} if deck is not None else {})

    @staticmethod
    def _deck(runner: Runner):
        return model_of(runner).deck
