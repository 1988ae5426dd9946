"""From the host to the device."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``, without a wait for it."""
    if device.type == 'cuda' and tensor.device.type == 'cpu':
        tensor = tensor.pin_memory()  # a copy from other memory waits for all that the device has to do before
    return tensor.to(device, non_blocking=True)
