"""What the configs of detection, segmentation and classification derive from a subnet.

Config files import these functions, so that they name a subnet and its file and nothing else::

    _base_ = './_base_/cascade-mask-rcnn_fpn_1x_coco.py'

    from poa_mm.deploy.downstream import detector, vit

    model = detector(vit('384x12', checkpoint='subnets/poa_384x12.safetensors'))

:func:`vit` gives the config of a stock backbone; :func:`detector`, :func:`segmentor`,
:func:`linear_segmentor` and :func:`classifier` give what a task's ``model`` needs to know of a backbone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from mmengine.utils import to_2tuple

from poa_mm.elastic import Subnet
from poa_mm.models import ElasticVisionTransformer

STRIDES = (4, 8, 16, 32)  # of the feature maps that FPN and UPerHead start from, in pixels
RESCALES = ((4, 2, 1, 0.5), (2, 1, 0.5, 0.25))  # what Feature2Pyramid can do


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
        patch_size: Height and width of its patches in pixels. Default: 16.
        head_dim: Channels of one of its attention heads. Default: 64.
        mlp_ratio: Hidden channels of its MLPs divided by the width. Default: 4.
        in_channels: Channels of the images. Default: 3.
        layer_scale_init_value: Initial LayerScale; 0 if the supernet has none. Default: 1e-5.
        **options: Other arguments of the backbone, such as ``drop_path_rate``. Which features come out and
            what is frozen is up to the task.

    Returns:
        The config, with an ``init_cfg`` that is None without a checkpoint.

    Raises:
        ValueError: If the subnet is malformed or does not consist of whole heads and MLP channels.
    """
    size = ElasticVisionTransformer.STANDARD_SUBNETS.get(subnet) or Subnet.parse(subnet)
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
        patch_size=to_2tuple(patch_size),
        in_channels=in_channels,
        layer_scale_init_value=layer_scale_init_value,
        **(dict(qkv_bias=True, norm_cfg=dict(type='LN', eps=1e-6), interpolate_mode='bicubic') | options),
        init_cfg=None if checkpoint is None else dict(type='Pretrained', checkpoint=os.fspath(checkpoint)),
    )


class _VisionTransformer:
    """What tasks ask of a stock ``VisionTransformer``.

    Args:
        config: Its config.
    """

    def __init__(self, config: Mapping[str, Any]):
        self.config = dict(config)
        self.width: int = config['arch']['embed_dims']
        self.depth: int = config['arch']['num_layers']

    def feature_maps(self) -> tuple[dict[str, Any], dict[str, Any], list[int]]:
        """Backbone with four feature maps, the neck that gives them ``STRIDES``, and their channels.

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


_FAMILIES = {'mmpretrain.VisionTransformer': _VisionTransformer}


def _family(backbone: Mapping[str, Any]) -> _VisionTransformer:
    kind = backbone.get('type')
    if kind not in _FAMILIES:
        raise ValueError(f'backbone {kind!r} is not one of {", ".join(_FAMILIES)}')
    return _FAMILIES[kind](backbone)


def _with(config: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
    if taken := sorted(settings.keys() & config.keys()):
        raise ValueError(f'{", ".join(taken)}: up to the task, but set in the backbone')
    return {**config, **settings}


# --- tasks -----------------------------------------------------------------------------------
def detector(
    backbone: Mapping[str, Any], channels: int = 256, norm_cfg: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Backbone and neck of a mmdet model with FPN: five maps of strides 4 to 64.

    Args:
        backbone: Config of a stock backbone, such as :func:`vit` returns.
        channels: Channels of FPN's maps, as the heads expect them. Default: 256.
        norm_cfg: Norm of FPN's convolutions. Default: None, as in mmdet's own configs.

    Raises:
        ValueError: If the backbone is of unknown type, has no four feature maps of strides 4, 8, 16 and 32, or
            sets itself what comes out of it. So do the functions below.
    """
    backbone, pyramid, widths = _family(backbone).feature_maps()
    fpn = dict(type='FPN', in_channels=widths, out_channels=channels, num_outs=5, norm_cfg=norm_cfg)
    return dict(backbone=backbone, neck=[pyramid, fpn])


def segmentor(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """Backbone, neck and channels of a mmseg model with UPerHead, and FCNHead on the third map as auxiliary head."""
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
    """Backbone and channels of a mmpretrain ImageClassifier.

    Args:
        backbone: Config of a stock backbone, such as :func:`vit` returns.
        frozen: Whether only the head is trained. Default: False.
    """
    family = _family(backbone)
    backbone, channels = (family.frozen() if frozen else family).class_features()
    return dict(backbone=backbone, neck=None, head=dict(in_channels=channels))
