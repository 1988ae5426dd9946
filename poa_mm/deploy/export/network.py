"""What the exporters start from: a subnet as a stock network that takes images in the order red, green, blue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from mmengine.utils import to_2tuple
from torch import Tensor, nn

from poa_mm.deploy.stock import StockNetwork
from poa_mm.evaluation.backbone import FAMILIES

VIT, SWIN, RESNET = 'ViT', 'Swin', 'ResNet'
KINDS = {'VisionTransformer': VIT, 'SwinTransformer': SWIN, 'ResNet': RESNET, 'BottleneckResNet': RESNET}
STEMS = {VIT: 'patch_embed.projection.weight', SWIN: 'patch_embed.projection.weight', RESNET: 'conv1.weight'}
# Options of the stock networks that the exporters understand. Another one would change what is computed.
COMMON = {'type', 'in_channels'}
KNOWN = {
    VIT: {'arch', 'img_size', 'patch_size', 'qkv_bias', 'norm_cfg', 'interpolate_mode', 'layer_scale_init_value'},
    SWIN: {'arch', 'img_size', 'patch_size', 'window_size', 'pad_small_map', 'stage_cfgs', 'out_indices'},
    RESNET: {
        *('depth', 'stage_blocks', 'mid_channels', 'base_channels', 'expansion', 'stem_channels', 'strides'),
        *('norm_cfg', 'out_indices'),
    },
}


class ExportError(ValueError):
    """A subnet cannot be exported as asked, or the export does not compute what the subnet does."""


class Outputs(NamedTuple):
    """What every export gives for images.

    Args:
        features: One vector for each image, ``(B, D)``: a ViT's class token, else the mean of the last feature map.
        feature_map: The patches of the last block or the last stage's map, normalised, ``(B, D, rows, columns)``.
    """

    features: Tensor
    feature_map: Tensor


class ExportNetwork:
    """A stock network, and what other libraries need to be told of it.

    A network that was pre-trained with images in the order blue, green, red (``to_rgb=False``) has the channels of
    its first convolution swapped, since nearly everything outside OpenMMLab reads red, green, blue. So every export
    takes that order.

    Args:
        stock: The subnet.

    Raises:
        ExportError: If the network has an option that the exporters do not know.
    """

    def __init__(self, stock: StockNetwork):
        self.stock = stock
        self.subnet = stock.subnet
        kind = str(stock.config['type']).removeprefix('mmpretrain.')
        self.kind = KINDS[kind]
        self.elastic = FAMILIES[kind]
        self.config = {key: value for key, value in stock.config.items() if value is not None}
        if unknown := sorted(set(self.config) - KNOWN[self.kind] - COMMON):
            raise ExportError(
                f'subnet {self.subnet}: the exporters do not know the option {", ".join(unknown)} of {kind}'
            )
        self.in_channels: int = self.config.get('in_channels', 3)
        self.image_size = to_2tuple(stock.image_size)
        self.has_bands = has_bands(stock.data_preprocessor, self.in_channels)
        self.swapped, self.mean, self.std = normalisation(stock.data_preprocessor, self.in_channels)
        self.state = dict(stock.state)
        if self.swapped:
            stem = STEMS[self.kind]
            self.state[stem] = self.state[stem].flip(1)
        self.programs: dict[bool, Any] = {}  # of torch.export, by whether the size is free

    @property
    def name(self) -> str:
        """How files of this network begin."""
        return f'poa_{self.subnet}'

    @property
    def stride(self) -> tuple[int, int]:
        """Pixels of a cell of the feature map, vertically and horizontally."""
        if self.kind == VIT:
            return to_2tuple(self.config['patch_size'])
        if self.kind == SWIN:
            return to_2tuple(self.config['patch_size'] * 8)
        stride = 4
        for step in self.config.get('strides', (1, 2, 2, 2)):
            stride *= step
        return stride, stride

    def build(self) -> nn.Module:
        """The stock network for images in the order red, green, blue."""
        return self.stock._replace(state=self.state).build()

    @torch.no_grad()
    def outputs(self, images: Tensor, original: bool = False) -> Outputs:
        """What the stock network gives.

        Args:
            images: ``(B, C, H, W)``, those of three channels in RGB.
            original: By the network as it was extracted, with its own order of channels. Default: False.
        """
        network = self.stock.build() if original else self.build()
        images = images.flip(1) if self.swapped and original else images
        found = self.elastic.plain_features(network, images)
        if self.kind != VIT:
            return Outputs(found.cls, network(images)[-1])
        grid = tuple(-(-size // patch) for size, patch in zip(images.shape[-2:], self.stride))
        return Outputs(found.cls, found.patch.transpose(1, 2).unflatten(2, grid))

    def description(self) -> dict[str, Any]:
        """What a user of a file has to know: ``input`` and ``outputs``, in plain data."""
        return dict(
            input=dict(
                name='images',
                shape=['batch', self.in_channels, *self.image_size],
                order='as in pre-training' if self.has_bands or self.in_channels == 1 else 'RGB',
                range='value / 255, minus mean, divided by std',
                value_range=self.stock.data_preprocessor.get('value_range') or [0, 255],  # becomes 0 to 255 first
                mean=self.mean,
                std=self.std,
            ),
            outputs=dict(
                features='class token' if self.kind == VIT else 'mean of the feature map',
                feature_map='patch tokens of the last block, (batch, channels, rows, columns)'
                if self.kind == VIT
                else 'map of the last stage, (batch, channels, rows, columns)',
            ),
        )


def has_bands(data_preprocessor: Mapping[str, Any], channels: int) -> bool:
    """Whether images are bands, in an order of their own, rather than grey or colour."""
    kind = str(data_preprocessor.get('type', '')).rpartition('.')[2]
    is_ranged = data_preprocessor.get('value_range') is not None
    return channels not in (1, 3) or is_ranged or kind == 'MultiBandDataPreprocessor'


def normalisation(data_preprocessor: Mapping[str, Any], channels: int) -> tuple[bool, list[float], list[float]]:
    """Whether the channels have to be swapped to RGB, and mean and deviation of values in [0, 1]."""
    # SelfSupDataPreprocessor takes any of these for the order of channels.
    to_rgb = any(data_preprocessor.get(key) for key in ('to_rgb', 'bgr_to_rgb', 'rgb_to_bgr'))
    swapped = channels == 3 and not to_rgb and not has_bands(data_preprocessor, channels)
    values = []
    for key, default in (('mean', 0.0), ('std', 1.0)):
        given = data_preprocessor.get(key)
        given = [default] * channels if given is None else [float(value) for value in given]
        given = given * channels if len(given) == 1 else given
        if len(given) != channels:
            raise ExportError(f'{key} of the images has {len(given)} values, the network takes {channels} channels')
        values.append([value / 255 for value in (given[::-1] if swapped else given)])
    return swapped, *values
