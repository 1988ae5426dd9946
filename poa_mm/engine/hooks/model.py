"""The model of a run, wrapped for distributed training or not."""

from __future__ import annotations

from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn


def model_of(runner: Runner) -> nn.Module:
    """The model itself, without its distributed wrapper."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model
