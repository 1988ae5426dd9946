"""The network to score: a supernet, or a network cut out of one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from mmpretrain.registry import MODELS
from torch import Tensor, nn

from poa_mm.elastic import Subnet, SubnetSpace
from poa_mm.engine.checkpoint import load_teacher
from poa_mm.engine.pretrained import load_weights
from poa_mm.models.backbones import Features


class StockBackbone(nn.Module):
    """A stock ViT of mmpretrain behind the interface of an elastic backbone: its space is one subnet.

    Args:
        config: Of the backbone, ``out_type`` aside.
    """

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        self.backbone = MODELS.build(dict(config, out_type='raw'))
        self.space = SubnetSpace([self.backbone.embed_dims], [self.backbone.num_layers])

    def extract_features(self, x: Tensor, subnet: Subnet | None = None) -> Features:
        """Class and patch features of images ``(B, C, H, W)``; there is one subnet, whatever is asked for."""
        tokens = self.backbone(x)[-1]  # (B, 1 + N, D)
        return Features(cls=tokens[:, 0], patch=tokens[:, 1:])


def load_backbone(config: Mapping[str, Any], checkpoint: str | os.PathLike | None = None) -> nn.Module:
    """The backbone to score, in evaluation mode, with weights that fit it to the last key.

    Args:
        config: Of an elastic backbone, or of the stock ViT that was cut out of one.
        checkpoint: Of the pre-training, or the file of the extracted weights. Default: the one that
            ``init_cfg=dict(type='Pretrained', checkpoint=...)`` of the backbone names.

    Returns:
        What :func:`~poa_mm.evaluation.evaluate_knn` takes: the teacher, or the stock network with a space of
        one subnet.

    Raises:
        CheckpointError: If the file cannot be read or does not fit.
        ValueError: If there is no checkpoint, or the backbone is of another kind.
    """
    init_cfg = config.get('init_cfg')
    checkpoint = checkpoint or (init_cfg.get('checkpoint') if isinstance(init_cfg, Mapping) else None)
    if checkpoint is None:
        raise ValueError('no checkpoint: give one, or name it in init_cfg of the backbone')
    kind = config.get('type')
    kind = MODELS.get(kind) if isinstance(kind, str) else kind
    if hasattr(kind, 'extract'):
        return load_teacher(checkpoint, config)[0]
    if kind is not MODELS.get('VisionTransformer'):
        raise ValueError(f"backbone {config.get('type')!r} is neither elastic nor mmpretrain's VisionTransformer")
    backbone = StockBackbone(config)
    load_weights(backbone.backbone, checkpoint, name='backbone')
    return backbone.eval()
