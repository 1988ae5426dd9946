"""The same random numbers for every piece of a batch."""

from __future__ import annotations

import torch


class RepeatedDraws:
    """Lets what is done for each piece of a batch draw the numbers that it draws for the first piece.

    Stochastic depth chooses from the whole batch (:class:`~poa_mm.models.backbones.elastic_backbone.BatchPart`), so all
    pieces have to draw alike, and a pass that is made twice has to draw the same both times. On the CPU, the numbers
    are then those of the whole batch in one piece. Dropout's pattern is the same in all pieces of one size.

    Args:
        device: Whose generator is drawn from, beside that of the CPU.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._states: dict[str, list[torch.Tensor]] = {}

    def begin(self, name: str) -> None:
        """To be called before each pass: the first of this ``name`` draws on, others draw what that has drawn."""
        on_gpu = self._device.type == 'cuda'
        if name not in self._states:
            self._states[name] = [torch.get_rng_state()] + ([torch.cuda.get_rng_state(self._device)] if on_gpu else [])
            return
        torch.set_rng_state(self._states[name][0])
        if on_gpu:
            torch.cuda.set_rng_state(self._states[name][1], self._device)
