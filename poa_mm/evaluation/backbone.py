"""The network to score: a supernet, or a network cut out of one."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from poa_mm.checkpoint import (
    SUPERNET_KEY,
    CheckpointError,
    compare_normalisation,
    description_of,
    load_teacher,
    read_checkpoint,
)
from poa_mm.elastic import Subnet, SubnetSpace
from poa_mm.engine.pretrained import load_weights
from poa_mm.models.backbones import ElasticResNet, ElasticSwinTransformer, ElasticVisionTransformer, Features
from poa_mm.models.backbones.elastic_backbone import ElasticBackbone

FAMILIES: Mapping[str, type[ElasticBackbone]] = {  # of what subnets are extracted to
    'VisionTransformer': ElasticVisionTransformer,
    'SwinTransformer': ElasticSwinTransformer,
    'ResNet': ElasticResNet,
    'BottleneckResNet': ElasticResNet,
}


class StockBackbone(nn.Module):
    """A network cut out of a supernet behind the interface of an elastic backbone: its space is one subnet.

    Args:
        config: Of the network.
        family: Class of the elastic backbone whose subnets are such networks.
    """

    def __init__(self, config: Mapping[str, Any], family: type[ElasticBackbone]):
        super().__init__()
        self.backbone = MODELS.build(dict(config))
        self.family = family
        self.space = SubnetSpace.of(family.subnet_of(self.backbone))

    def extract_features(self, x: Tensor, subnet: Subnet | None = None) -> Features:
        """Class and patch features of images ``(B, C, H, W)``; there is one subnet, whatever is asked for."""
        return self.family.plain_features(self.backbone, x)


def name_of(network: nn.Module, family: type[ElasticBackbone], meta: Any, what: Any) -> Subnet:
    """The subnet that a network is, as the supernet calls it.

    The network shows its width and depth. Which of several patch sizes was the native one, only the file says.

    Args:
        network: A stock network.
        family: Class of the elastic backbone whose subnets are such networks.
        meta: Metadata of the file of its weights, as extraction writes them; None if there are none.
        what: What errors call the file.

    Raises:
        CheckpointError: If the file names another subnet than the network is.
    """
    found = family.subnet_of(network)
    name = meta.get('subnet') if isinstance(meta, Mapping) else None
    if name is None:
        return found
    try:
        named = Subnet.parse(name)
    except ValueError as error:
        raise CheckpointError(f'{what}: {error}') from error
    if (named.width, named.depth) != (found.width, found.depth):
        raise CheckpointError(f'{what}: the file is of subnet {named}, the network is {found}')
    if named.patch is not None and set(network.patch_embed.projection.kernel_size) != {named.patch}:
        patch = network.patch_embed.projection.kernel_size
        raise CheckpointError(f'{what}: the file is of subnet {named}, the patches of the network are {patch}')
    return named


def load_backbone(
    config: Mapping[str, Any],
    checkpoint: str | os.PathLike | None = None,
    preprocessor: nn.Module | None = None,
) -> nn.Module:
    """The backbone to score, in evaluation mode, with weights that fit it to the last key.

    Args:
        config: Of an elastic backbone, or of the network that was cut out of one.
        checkpoint: Of the pre-training, or the file of the extracted weights. Default: the one that
            ``init_cfg=dict(type='Pretrained', checkpoint=...)`` of the backbone names.
        preprocessor: The data preprocessor that images will go through, to compare with what the checkpoint records.
            Default: nothing is compared.

    Returns:
        What :func:`~poa_mm.evaluation.evaluate_knn` takes: the teacher, or the extracted network with a space of
        one subnet.

    Raises:
        CheckpointError: If the file cannot be read or does not fit.
        ValueError: If there is no checkpoint, the backbone is of another kind, or images would be normalised otherwise
            than in the pre-training.
    """
    init_cfg = config.get('init_cfg')
    checkpoint = checkpoint or (init_cfg.get('checkpoint') if isinstance(init_cfg, Mapping) else None)
    if checkpoint is None:
        raise ValueError('no checkpoint: give one, or name it in init_cfg of the backbone')
    backbone = _loaded(config, checkpoint)
    if preprocessor is not None:
        check_normalisation(preprocessor, checkpoint)
    return backbone


def _loaded(config: Mapping[str, Any], checkpoint: str | os.PathLike) -> nn.Module:
    kind = config.get('type')
    kind = MODELS.get(kind) if isinstance(kind, str) else kind
    if hasattr(kind, 'extract'):
        return load_teacher(checkpoint, config)[0]
    family = next((family for name, family in FAMILIES.items() if kind is MODELS.get(name)), None)
    if family is None:
        raise ValueError(f'backbone {config.get("type")!r} is neither elastic nor one of {", ".join(FAMILIES)}')
    backbone = StockBackbone(config, family)
    load_weights(backbone.backbone, checkpoint, name='backbone')
    meta = read_checkpoint(checkpoint, weights=False).get('meta')
    backbone.space = SubnetSpace.of(name_of(backbone.backbone, family, meta, checkpoint))
    return backbone.eval()


def check_normalisation(preprocessor: nn.Module, checkpoint: str | os.PathLike) -> None:
    """Check that images are normalised as a checkpoint records it.

    Args:
        preprocessor: The data preprocessor.
        checkpoint: As for :func:`load_backbone`. One that does not say is named in the log.

    Raises:
        CheckpointError: If the file cannot be read.
        ValueError: If they are not; names both values.
    """
    content = read_checkpoint(checkpoint, weights=False)
    if SUPERNET_KEY in content:
        stored = dict(content[SUPERNET_KEY].get('data_preprocessor') or {})
        stored['to_rgb'] = any(stored.get(key) for key in ('to_rgb', 'bgr_to_rgb', 'rgb_to_bgr'))
    else:
        description = description_of(content.get('meta'), checkpoint)
        stored = description.normalisation if description is not None else None
    if not stored or stored.get('mean') is None:
        print_log(f'{checkpoint} does not say how its images were normalised: this is not compared.', 'current')
        return
    differences, normalises = compare_normalisation(preprocessor, stored)
    if not normalises:
        print_log(
            f'The data preprocessor does not normalise, as the pre-training of {checkpoint} did (mean '
            f'{stored["mean"]}): the pipeline has to.',
            'current',
            logging.WARNING,
        )
    if differences:
        raise ValueError(
            f'{checkpoint}: images would be normalised otherwise than in its pre-training: '
            + '; '.join(map(str, differences))
        )
