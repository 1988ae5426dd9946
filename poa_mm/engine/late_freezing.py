"""Backbones that freeze their first stages too late for distributed training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LATE = 'find_unused_parameters = True: a Swin with frozen stages freezes itself in its first training step only.'


def freezes_late(config: Any) -> bool:
    """Whether a nested config has a backbone that freezes its first stages no earlier than in its first ``train()``.

    mmpretrain's Swin does. ``DistributedDataParallel`` has looked by then for what is trained.
    """
    if isinstance(config, Mapping):
        kind = config.get('type')
        name = str(getattr(kind, '__name__', kind)).rpartition('.')[2]
        stages = config.get('frozen_stages')
        if name == 'SwinTransformer' and stages is not None and stages >= 0:
            return True
        config = config.values()
    elif not isinstance(config, (list, tuple)):
        return False
    return any(map(freezes_late, config))
