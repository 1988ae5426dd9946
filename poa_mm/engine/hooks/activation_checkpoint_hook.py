"""Activation checkpointing for networks that have none of their own."""

from __future__ import annotations

from functools import partial
from operator import attrgetter

from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from poa_mm.models.backbones.elastic_backbone import run_block

from .model import model_of
from .once import OnceHook


@HOOKS.register_module()
class ActivationCheckpointHook(OnceHook):
    """Keeps the inputs of blocks only, and computes the blocks again in the backward pass.

    The same results in less memory and more time: what ``with_cp=True`` is to a Swin or a ResNet, for mmpretrain's
    ``VisionTransformer``, which does not know it. mmengine's own ``activation_checkpointing`` leaves the first trained
    block behind frozen ones without gradient.

    Args:
        blocks: Names of modules, or of lists of modules, of the model. Default: ``('backbone.layers',)``.

    Raises:
        ValueError: Before training, if the model has no such module.
    """

    def __init__(self, blocks: tuple[str, ...] | str = ('backbone.layers',)):
        self.blocks = (blocks,) if isinstance(blocks, str) else tuple(blocks)

    def before_train(self, runner: Runner) -> None:
        """Wrap the blocks."""
        model = model_of(runner)
        for name in self.blocks:
            try:
                found = attrgetter(name)(model)
            except AttributeError:
                valid = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
                raise ValueError(
                    f'ActivationCheckpointHook: the model has no {name!r}; its lists of blocks are {", ".join(valid)}'
                ) from None
            for block in found if isinstance(found, (nn.ModuleList, nn.Sequential)) else [found]:
                block.forward = partial(run_block, block.forward, with_cp=True)
