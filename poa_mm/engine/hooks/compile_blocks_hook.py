"""Compiled blocks, for all sizes at once."""

from __future__ import annotations

import torch
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from poa_mm.models.backbones import ElasticVisionTransformer

from .model import model_of
from .once import OnceHook


@HOOKS.register_module()
class CompileBlocksHook(OnceHook):
    """Compiles the blocks of an elastic ViT, of students and teacher, with ``torch.compile``.

    No config has it by default: on CPUs it gains nothing (``benchmarks/README.md``), on GPUs it has not been measured.
    Checkpoints are the same with and without it.

    Widths, images and tokens are symbols to the compiler, and blocks share their code. So a few graphs are enough
    for all subnets: full width and any smaller one, with gradient and, for the teacher, without. mmengine's ``compile``
    would trace the whole step of each subnet.

    Args:
        backend: Of ``torch.compile``. Default: ``'inductor'``.
        **options: More for ``torch.compile``. Default: ``dynamic=True``.

    Raises:
        ValueError: If torch is older than 2.5, which compiles each block by itself and not with stochastic depth; or,
            before training, if the backbone is not an ``ElasticVisionTransformer``: blocks of the others differ from
            stage to stage and would exceed torch's limit of graphs.
    """

    def __init__(self, backend: str = 'inductor', **options):
        if torch.__version__ < (2, 5):
            raise ValueError(f'CompileBlocksHook needs torch 2.5 or newer, and this is {torch.__version__}')
        self.options = dict(dynamic=True, backend=backend) | options

    def before_train(self, runner: Runner) -> None:
        """Have each block compiled at its first call."""
        model = model_of(runner)
        if not isinstance(model.backbone, ElasticVisionTransformer):
            raise ValueError(
                f'CompileBlocksHook is for ElasticVisionTransformer only, not for {type(model.backbone).__name__}'
            )
        for module in model.modules():
            if isinstance(module, model.backbone.block):
                module.compile(**self.options)
