"""Parts of a network that do not train."""

from __future__ import annotations

import logging

from mmengine.logging import print_log
from torch import nn

RATES = {nn.Dropout: 'p', nn.Dropout2d: 'p'}  # and `drop_prob`, as mmcv's and mmpretrain's drop paths call it


def silence_frozen(model: nn.Module) -> int:
    """Switch dropout and drop path off for good in the parts of a network whose weights are all frozen.

    mmpretrain's ViT puts them into evaluation mode once, and training mode brings them back: what is frozen would then
    give other features at each step.

    Returns:
        How many rates were above 0; they are said in the log.
    """
    rates = []
    for module in model.modules():
        params = list(module.parameters())
        if params and not any(param.requires_grad for param in params):
            rates += [rate for part in module.modules() if (rate := _silence(part))]
    if rates:
        text = f'The frozen part of the network trains without its dropout and drop path (up to {max(rates):g}).'
        print_log(text, 'current', logging.WARNING)
    return len(rates)


def _silence(module: nn.Module) -> float:
    """The rate that a layer had."""
    name = 'drop_prob' if hasattr(module, 'drop_prob') else RATES.get(type(module))
    rate = getattr(module, name) if name else 0.0
    if not isinstance(rate, float) or rate <= 0:
        return 0.0
    setattr(module, name, 0.0)
    return rate
