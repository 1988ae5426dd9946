"""What the configs of detection, segmentation and classification derive from a subnet.

Config files import these functions, so that they name a subnet and its file and nothing else::

    _base_ = './_base_/cascade-mask-rcnn_fpn_1x_coco.py'

    from poa_mm.deploy.downstream import detector, vit

    model = detector(vit('384x12', checkpoint='subnets/poa_384x12.safetensors'))

:func:`vit`, :func:`swin` and :func:`resnet` give the config of a stock backbone; :func:`detector`,
:func:`segmentor`, :func:`linear_segmentor` and :func:`classifier` give what a task's ``model`` needs to know of
a backbone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from fractions import Fraction
from itertools import accumulate
from operator import mul
from typing import Any, NamedTuple

from mmengine.utils import to_2tuple

from poa_mm.elastic import Subnet
from poa_mm.models import ElasticResNet, ElasticSwinTransformer, ElasticVisionTransformer
from poa_mm.models.backbones.elastic_resnet import resnet_config
from poa_mm.models.backbones.swin_config import swin_config

STRIDES = (4, 8, 16, 32)  # of the feature maps that FPN and UPerHead start from, in pixels
RESCALES = ((4, 2, 1, 0.5), (2, 1, 0.5, 0.25))  # what Feature2Pyramid can do


class FineTuning(NamedTuple):
    """What the customary recipes of a family set.

    Args:
        drop_path_rate: Of the backbone.
        layer_decay_rate: In place of that of a task's config, which is made for ViTs. Default: None, the config's.
    """

    drop_path_rate: float
    layer_decay_rate: float | None = None


# --- backbones -------------------------------------------------------------------------------
def vit(
    subnet: Subnet | str,
    checkpoint: str | os.PathLike | None = None,
    *,
    img_size: int | tuple[int, int] = 224,
    patch_size: int | tuple[int, int] = 16,
    head_dim: int = 64,
    mlp_ratio: float | Fraction = 4,
    in_channels: int = 3,
    layer_scale_init_value: float = 1e-5,
    **options: Any,
) -> dict[str, Any]:
    """Config of the stock ``mmpretrain.VisionTransformer`` that a subnet of an elastic ViT is.

    The defaults are those of the supernet of ``configs/poa/vitl_in1k.py``. Inputs of other sizes than
    ``img_size`` resize the position embedding in the forward pass.

    Args:
        subnet: ``'384x12'``, a :class:`Subnet` or one of ``tiny``, ``small``, ``base`` and ``large``.
        checkpoint: File of the extracted weights. Default: None, random weights.
        img_size: Height and width in pixels that the supernet's position embedding is made for.
            Default: 224.
        patch_size: Height and width of its native patches in pixels; a subnet such as ``384x12p32`` has its own.
            Default: 16.
        head_dim: Channels of one of its attention heads. Default: 64.
        mlp_ratio: Hidden channels of its MLPs divided by the width. Default: 4.
        in_channels: Channels of the images. Default: 3.
        layer_scale_init_value: Initial LayerScale; 0 if the supernet has none. Default: 1e-5.
        **options: Other arguments of the backbone, such as ``drop_path_rate``. Which features come out and
            what is frozen is up to the task.

    Returns:
        The config, with an ``init_cfg`` that is None without a checkpoint.

    Raises:
        ValueError: If the subnet is malformed or does not consist of whole heads and MLP channels, or for ``with_cp``,
            which mmpretrain's class does not have.
    """
    size = _named(subnet, ElasticVisionTransformer)
    if 'with_cp' in options:
        raise ValueError(
            "mmpretrain's VisionTransformer has no with_cp; custom_hooks = [.., dict(type='ActivationCheckpointHook')] "
            'does the same'
        )
    heads, rest = divmod(size.width, head_dim)
    if rest or heads < 1 or size.depth < 1:
        raise ValueError(f'subnet {size} does not consist of blocks with heads of {head_dim} channels')
    hidden = Fraction(mlp_ratio) * size.width
    if hidden.denominator != 1:
        raise ValueError(f'mlp_ratio {mlp_ratio} makes {float(hidden)} hidden channels of width {size.width}')
    return dict(
        type='mmpretrain.VisionTransformer',
        arch=dict(embed_dims=size.width, num_layers=size.depth, num_heads=heads, feedforward_channels=hidden.numerator),
        img_size=to_2tuple(img_size),
        patch_size=to_2tuple(patch_size if size.patch is None else size.patch),
        in_channels=in_channels,
        layer_scale_init_value=layer_scale_init_value,
        **(dict(qkv_bias=True, norm_cfg=dict(type='LN', eps=1e-6), interpolate_mode='bicubic') | options),
        init_cfg=_pretrained(checkpoint),
    )


def swin(
    subnet: Subnet | str,
    checkpoint: str | os.PathLike | None = None,
    *,
    depths: Sequence[int] = (2, 2, 18, 2),
    img_size: int | tuple[int, int] = 224,
    patch_size: int = 4,
    head_dim: int = 16,
    in_channels: int = 3,
    window_size: int = 7,
    **options: Any,
) -> dict[str, Any]:
    """Config of the stock ``mmpretrain.SwinTransformer`` that a subnet of an elastic Swin is.

    The defaults are those of the paper's supernet, :class:`~poa_mm.models.ElasticSwinTransformer`.

    Args:
        subnet: ``'96x6'``, a :class:`Subnet` or one of ``tiny``, ``small``, ``base`` and ``large``. Its depth is
            that of the third stage.
        checkpoint: File of the extracted weights. Default: None, random weights.
        depths: Blocks of the supernet's stages; which blocks a subnet keeps decides which of its windows are
            shifted. Default: (2, 2, 18, 2).
        img_size: Height and width in pixels that the supernet is made for. Default: 224.
        patch_size: Height and width of its patches in pixels. Default: 4.
        head_dim: Channels of one of its attention heads. Default: 16.
        in_channels: Channels of the images. Default: 3.
        window_size: Rows and columns of its windows. Default: 7.
        **options: As of :func:`vit`.

    Returns:
        The config, with an ``init_cfg`` that is None without a checkpoint.

    Raises:
        ValueError: If the subnet is malformed, does not consist of whole heads, or is deeper than the supernet.
    """
    size = _named(subnet, ElasticSwinTransformer)
    if not isinstance(size.depth, int) or size.width < 1 or size.width % head_dim:
        raise ValueError(f'subnet {size} does not consist of blocks with heads of {head_dim} channels')
    sizes = dict(head_dim=head_dim, img_size=to_2tuple(img_size), patch_size=patch_size)
    config = swin_config(size, depths, in_channels=in_channels, window_size=window_size, **sizes)
    return downstream_backbone(config) | options | dict(init_cfg=_pretrained(checkpoint))


def resnet(
    subnet: Subnet | str,
    checkpoint: str | os.PathLike | None = None,
    *,
    in_channels: int = 3,
    stem_channels: int = 64,
    base_channels: int = 64,
    strides: Sequence[int] = (1, 2, 2, 2),
    num_groups: int = 32,
    **options: Any,
) -> dict[str, Any]:
    """Config of the plain ResNet with GroupNorm that a subnet of an elastic ResNet is.

    That is ``mmpretrain.ResNet``, or :class:`~poa_mm.models.backbones.BottleneckResNet` for sizes that the stock
    class does not have. The defaults are those of the paper's supernet, :class:`~poa_mm.models.ElasticResNet`.

    Args:
        subnet: ``'64x3-4-6-3'``, a :class:`Subnet` or one of ``r50``, ``r101`` and ``r152``.
        checkpoint: File of the extracted weights. Default: None, random weights.
        in_channels: Channels of the images. Default: 3.
        stem_channels: Channels of the supernet's stem. Default: 64.
        base_channels: A quarter of the channels that its first stage gives. Default: 64.
        strides: Stride of the first block of each stage. Default: (1, 2, 2, 2).
        num_groups: Groups of its GroupNorms. Default: 32.
        **options: As of :func:`vit`.

    Returns:
        The config, with an ``init_cfg`` that is None without a checkpoint.

    Raises:
        ValueError: If the subnet is malformed, does not have four stages or does not consist of whole groups.
    """
    size = _named(subnet, ElasticResNet)
    if isinstance(size.depth, int) or len(size.depth) != 4 or min(size.depth) < 1:
        raise ValueError(f"subnet {size} does not have blocks in four stages, such as '64x3-4-6-3'")
    if size.width < 1 or size.width % num_groups:
        raise ValueError(f'subnet {size} does not consist of {num_groups} groups of channels')
    sizes = dict(stem_channels=stem_channels, base_channels=base_channels, strides=tuple(strides))
    config = resnet_config(size, in_channels=in_channels, num_groups=num_groups, **sizes)
    return downstream_backbone(config) | options | dict(init_cfg=_pretrained(checkpoint))


def _named(subnet: Subnet | str, family: type) -> Subnet:
    size = family.STANDARD_SUBNETS.get(subnet) or Subnet.parse(subnet)
    if size.patch is not None and family is not ElasticVisionTransformer:
        raise ValueError(f'subnet {size}: only a ViT has a choice of patch sizes, not {family.__name__}')
    return size


def _pretrained(checkpoint: str | os.PathLike | None) -> dict[str, str] | None:
    return None if checkpoint is None else dict(type='Pretrained', checkpoint=os.fspath(checkpoint))


# --- families --------------------------------------------------------------------------------
class _VisionTransformer:
    """What tasks ask of a stock ``VisionTransformer``.

    Args:
        config: Its config.
    """

    elastic = ElasticVisionTransformer
    fine_tuning = FineTuning(drop_path_rate=0.1)

    def __init__(self, config: Mapping[str, Any]):
        self.config = dict(config)
        self.width: int = config['arch']['embed_dims']
        self.depth: int = config['arch']['num_layers']

    def feature_maps(self) -> tuple[dict[str, Any], dict[str, Any] | None, list[int]]:
        """Backbone with four feature maps, the neck, if any, that gives them ``STRIDES``, and their channels.

        The maps are those at the ends of the four quarters of the depth, all of the patches' stride.
        """
        if self.depth < 4:
            raise ValueError(f'{self.depth} blocks have no four quarters to take feature maps from; 4 or more have')
        ends = tuple(self.depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4))
        patch = to_2tuple(self.config['patch_size'])
        rescales = tuple(patch[0] / stride for stride in STRIDES)
        if patch[0] != patch[1] or rescales not in RESCALES:
            raise ValueError(f'patch_size {patch} cannot be rescaled to strides {STRIDES}; valid: 8 and 16')
        neck = dict(type='mmseg.Feature2Pyramid', embed_dim=self.width, rescales=list(rescales))
        return _with(self.config, out_type='featmap', out_indices=ends), neck, [self.width] * 4

    def last_map(self) -> tuple[dict[str, Any], int]:
        """Backbone with the patches of the last block as feature map, and its channels."""
        return _with(self.config, out_type='featmap', out_indices=(self.depth - 1,)), self.width

    def class_features(self) -> tuple[dict[str, Any], int]:
        """Backbone with one vector for each image, and its channels."""
        return _with(self.config, out_type='cls_token'), self.width

    def frozen(self) -> _VisionTransformer:
        """The same with all of its parameters frozen."""
        return type(self)(_with(self.config, frozen_stages=self.depth))


class _Hierarchical:
    """What tasks ask of a backbone whose four stages each have a feature map of their own.

    Args:
        config: Its config.
        strides: Those of the stages, in pixels.
        width: Channels of the first stage's map, doubled from stage to stage.
        last_stage: What the backbone's ``frozen_stages`` calls the last stage.
    """

    def __init__(self, config: Mapping[str, Any], strides: Iterable[int], width: int, last_stage: int):
        self.config = dict(config)
        self.strides = tuple(strides)
        self.channels = [width * 2**stage for stage in range(4)]
        self.last_stage = last_stage

    def feature_maps(self) -> tuple[dict[str, Any], None, list[int]]:
        """Backbone with four feature maps, no neck, and their channels."""
        if self.strides != STRIDES:
            raise ValueError(f'stages of strides {self.strides}; valid: {STRIDES}')
        return _with(self.config, out_indices=(0, 1, 2, 3)), None, self.channels

    def last_map(self) -> tuple[dict[str, Any], int]:
        """Backbone with the feature map of the last stage, and its channels."""
        return _with(self.config, out_indices=(3,)), self.channels[3]

    class_features = last_map  # of which the elastic backbone's ``neck`` takes the mean

    def frozen(self) -> _Hierarchical:
        """The same with all of its parameters frozen."""
        return type(self)(_with(self.config, frozen_stages=self.last_stage))


class _SwinTransformer(_Hierarchical):
    """What tasks ask of a stock ``SwinTransformer``."""

    elastic = ElasticSwinTransformer
    fine_tuning = FineTuning(drop_path_rate=0.1, layer_decay_rate=1.0)

    def __init__(self, config: Mapping[str, Any]):
        strides = [config['patch_size'] * 2**stage for stage in range(4)]
        super().__init__(config, strides, width=config['arch']['embed_dims'], last_stage=3)


class _ResNet(_Hierarchical):
    """What tasks ask of a stock ``ResNet`` or a ``BottleneckResNet``."""

    elastic = ElasticResNet
    fine_tuning = FineTuning(drop_path_rate=0.0, layer_decay_rate=1.0)

    def __init__(self, config: Mapping[str, Any]):
        _, *strides = accumulate(config['strides'], mul, initial=4)  # the stem's
        super().__init__(config, strides, width=config['base_channels'] * config.get('expansion', 4), last_stage=4)


_FAMILIES = {
    'mmpretrain.VisionTransformer': _VisionTransformer,
    'mmpretrain.SwinTransformer': _SwinTransformer,
    'mmpretrain.ResNet': _ResNet,
    'BottleneckResNet': _ResNet,  # poa_mm's own
}


def _family(backbone: Mapping[str, Any]) -> _VisionTransformer | _Hierarchical:
    kind = backbone.get('type')
    if kind not in _FAMILIES:
        raise ValueError(f'backbone {kind!r} is not one of {", ".join(_FAMILIES)}')
    return _FAMILIES[kind](backbone)


def _with(config: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
    if taken := sorted(key for key, value in settings.items() if config.get(key, value) != value):
        raise ValueError(f'{", ".join(taken)}: up to the task, but set in the backbone')
    return {**config, **settings}


def downstream_backbone(extracted: Mapping[str, Any]) -> dict[str, Any]:
    """Config that extraction gives, with a type that mmdet, mmseg and mmpretrain resolve."""
    kind = extracted['type']
    return {**extracted, 'type': kind if kind in _FAMILIES else f'mmpretrain.{kind}'}


def fine_tuning(backbone: Mapping[str, Any]) -> FineTuning:
    """What the configs that fine-tune a backbone set besides its model.

    Raises:
        ValueError: If the backbone is of unknown type.
    """
    return _family(backbone).fine_tuning


# --- tasks -----------------------------------------------------------------------------------
def detector(
    backbone: Mapping[str, Any], channels: int = 256, norm_cfg: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Backbone and neck of a mmdet model with FPN: five maps of strides 4 to 64.

    Args:
        backbone: Config of a stock backbone, such as :func:`vit`, :func:`swin` and :func:`resnet` return.
        channels: Channels of FPN's maps, as the heads expect them. Default: 256.
        norm_cfg: Norm of FPN's convolutions. Default: None, as in mmdet's own configs.

    Raises:
        ValueError: If the backbone is of unknown type, has no four feature maps of strides 4, 8, 16 and 32, or
            sets itself something else that comes out of it. So do the functions below.
    """
    backbone, pyramid, widths = _family(backbone).feature_maps()
    fpn = dict(type='FPN', in_channels=widths, out_channels=channels, num_outs=5, norm_cfg=norm_cfg)
    return dict(backbone=backbone, neck=[pyramid, fpn] if pyramid else fpn)


def segmentor(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """Backbone, neck and channels of a mmseg model with UPerHead, and FCNHead on the third map as auxiliary head.

    The neck is None for backbones whose stages have the strides that UPerHead starts from.
    """
    backbone, pyramid, channels = _family(backbone).feature_maps()
    return dict(
        backbone=backbone,
        neck=pyramid,
        decode_head=dict(in_channels=channels, in_index=[0, 1, 2, 3]),
        auxiliary_head=dict(in_channels=channels[2], in_index=2),
    )


def linear_segmentor(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """Frozen backbone, and channels of a mmseg FCNHead without convolutions on its last feature map."""
    backbone, channels = _family(backbone).frozen().last_map()
    return dict(backbone=backbone, decode_head=dict(in_channels=channels, channels=channels, in_index=0))


def classifier(backbone: Mapping[str, Any], frozen: bool = False) -> dict[str, Any]:
    """Backbone, neck and channels of a mmpretrain ImageClassifier.

    Args:
        backbone: Config of a stock backbone, such as :func:`vit`, :func:`swin` and :func:`resnet` return.
        frozen: Whether only the head is trained. A stock Swin freezes itself no earlier than its first
            ``train()``, so that distributed training needs ``find_unused_parameters = True``, which
            ``tools/train.py`` sets. Default: False.
    """
    family = _family(backbone)
    backbone, channels = (family.frozen() if frozen else family).class_features()
    return dict(backbone=backbone, neck=copy(family.elastic.neck), head=dict(in_channels=channels))
