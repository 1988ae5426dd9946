"""Elastic ResNet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from mmengine.registry import MODELS
from mmengine.utils import to_2tuple
from mmpretrain.models.backbones import ResNet
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from mmpretrain.models.backbones.resnet import ResLayer
from torch import Tensor, nn
from torch.nn import functional as F

from poa_mm.elastic import (
    Cost,
    ElasticConv2d,
    ElasticGroupNorm,
    Subnet,
    SubnetSpace,
    kept_blocks,
    resnet_cost,
    sliced_state_dict,
)

from .bottleneck_resnet import BottleneckResNet, MidChannelsBottleneck
from .elastic_backbone import BatchPart, Features, OnePatchSize, map_features, run_block


class ElasticBottleneck(MidChannelsBottleneck):
    """Bottleneck whose mid channels can be cut; its input and output never are."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        mid, num_groups = self.mid_channels, self.norm_cfg['num_groups']
        self.conv1 = ElasticConv2d(self.in_channels, mid, 1, elastic_in=False)
        self.conv2 = ElasticConv2d(mid, mid, 3, self.conv2_stride, padding=1)
        self.conv3 = ElasticConv2d(mid, self.out_channels, 1, elastic_out=False)
        for name in (self.norm1_name, self.norm2_name):
            setattr(self, name, ElasticGroupNorm(num_groups, mid))

    def forward(self, x: Tensor, ratio: Fraction) -> Tensor:
        """``(B, in, H, W)`` to ``(B, out, H', W')`` at ``ratio`` of the full mid channels."""
        out = self.relu(self.norm1(self.conv1(x, ratio)))
        out = self.relu(self.norm2(self.conv2(out, ratio)))
        out = self.norm3(self.conv3(out, ratio))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


@MODELS.register_module()
class ElasticResNet(OnePatchSize, BottleneckResNet):
    """ResNet that computes any of its subnets (POA, Sec. 3.2).

    At full size it is a bottleneck ``ResNet`` of mmpretrain; its forward takes the subnet to compute. The width of a
    subnet is the mid channels of the first stage's bottlenecks, doubled from stage to stage; what the stages give
    keeps its channels. The depth is cut in each stage by itself. A cut norm keeps its number of groups.

    It takes mmpretrain's options as below, and extraction carries each over. It does not take ``norm_cfg``: GroupNorm
    is the only norm, as subnets that shared batch statistics would spoil them for each other. Nor does it take
    ``dilations``, ``style``, ``conv_cfg`` and ``drop_path_rate``, which POA does not use.

    The class feature is the mean of the last feature map; patches and masks lie on a grid twice as fine as
    that map. A mask replaces what the stem gives, after its pooling.

    Args:
        stage_blocks: Blocks of each of the four stages: the largest subnet. Default: (3, 8, 36, 3), ResNet-152.
        mid_channels: Mid channels of the first stage's bottlenecks: the largest subnet. Default: 128.
        widths: Widths of the subnets, up to ``mid_channels``. Default: a half, three quarters and all of it.
        depths: Depths of the subnets, those of each stage: ``[[3], [4, 8], [6, 36], [3]]``. Default: from half
            of the second and from a sixth of the third stage up, the others whole; 155 for ResNet-152.
        aliases: Names of subnets. Default: ``r50``, ``r101`` and ``r152`` where the space holds them.
        img_size: Height and width in pixels that costs are given for; any size can be computed. Default: 224.
        in_channels: Channels of the images. Default: 3.
        stem_channels: Channels of the stem. Default: 64.
        base_channels: A quarter of the channels that the first stage gives. Default: 64.
        strides: Stride of the first block of each stage. Default: (1, 2, 2, 2).
        out_indices: Stages whose output is returned. Default: (3,).
        num_groups: Groups of every GroupNorm. Default: 32.
        zero_init_residual: Start with residual branches that give zero. Default: True.
        deep_stem: Three convolutions of 3 x 3 instead of one of 7 x 7. Default: False.
        avg_down: Shortcuts that change the resolution average before they project. Default: False.
        frozen_stages: Number of leading stages that do not train, with the stem; 0: the stem alone. Default: -1, none.
        norm_eval: As of mmpretrain's class, for which it concerns BatchNorm only; there is none. Default: False.
        with_cp: Keep the inputs of each block only, and compute the block again in the backward pass: the same
            results in much less memory and more time. Default: False.
        init_cfg: mmengine's initialisation config. Default: that of mmpretrain's ``ResNet``.

    Raises:
        ValueError: If sizes, widths, depths or out_indices are not valid, or groups do not divide the channels.
    """

    STANDARD_SUBNETS: Mapping[str, Subnet] = {
        'r50': Subnet(64, (3, 4, 6, 3)),
        'r101': Subnet(64, (3, 4, 23, 3)),
        'r152': Subnet(64, (3, 8, 36, 3)),
    }
    INIT_CFG = [dict(type='Kaiming', layer='Conv2d'), dict(type='Constant', val=1, layer='GroupNorm')]
    stem_modules = ('conv1', 'gn1')
    block = ElasticBottleneck
    neck = dict(type='GlobalAveragePooling')
    elastic_options = ()
    training_options = ('frozen_stages', 'norm_eval')

    def __init__(
        self,
        stage_blocks: Sequence[int] = (3, 8, 36, 3),
        mid_channels: int = 128,
        widths: Iterable[int] | None = None,
        depths: Sequence[int | Iterable[int]] | None = None,
        aliases: Mapping[str, str] | None = None,
        img_size: int | tuple[int, int] = 224,
        in_channels: int = 3,
        stem_channels: int = 64,
        base_channels: int = 64,
        strides: Sequence[int] = (1, 2, 2, 2),
        out_indices: Sequence[int] = (3,),
        num_groups: int = 32,
        zero_init_residual: bool = True,
        deep_stem: bool = False,
        avg_down: bool = False,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list | None = None,
    ):
        space = _space(tuple(stage_blocks), mid_channels, widths, depths, self.STANDARD_SUBNETS, aliases)
        if num_groups < 1:
            raise ValueError(f'num_groups {num_groups} is not positive')
        for channels in (*space.widths, stem_channels, 4 * base_channels, *([stem_channels // 2] if deep_stem else [])):
            if channels % num_groups:
                raise ValueError(
                    f'{num_groups} groups do not divide {channels} channels; widths {space.widths}, stem_channels '
                    f'{stem_channels} (half of it with deep_stem) and 4 * base_channels {4 * base_channels} have to be '
                    'multiples'
                )
        if not -1 <= frozen_stages <= 4:
            raise ValueError(f'frozen_stages {frozen_stages} is not among -1 (none), 0 (the stem), 1, 2, 3, 4')
        if len(strides) != 4 or not set(out_indices) <= set(range(4)):
            raise ValueError(f'strides {strides} must be four and out_indices {out_indices} among 0, 1, 2, 3')
        # Not ResNet.__init__, which would build other blocks, and cannot on the meta device.
        BaseBackbone.__init__(self, init_cfg or self.INIT_CFG)
        self.stage_blocks = tuple(stage_blocks)
        self.mid_channels = mid_channels
        self.stem_channels = stem_channels
        self.base_channels = base_channels
        self.strides = tuple(strides)
        self.out_indices = tuple(out_indices)
        self.norm_cfg = dict(type='GN', num_groups=num_groups)
        self.zero_init_residual = zero_init_residual
        self.with_cp = with_cp
        self.conv_cfg, self.deep_stem, self.avg_down = None, deep_stem, avg_down
        self.frozen_stages, self.norm_eval = frozen_stages, norm_eval
        self.stem_modules = ('stem',) if deep_stem else ('conv1', 'gn1')

        self._make_stem_layer(in_channels, stem_channels)
        self.res_layers = []
        channels, outputs = stem_channels, 4 * base_channels
        for index, (num_blocks, stride) in enumerate(zip(stage_blocks, strides)):
            name = f'layer{index + 1}'
            layer = ResLayer(
                ElasticBottleneck,
                num_blocks,
                channels,
                outputs,
                mid_channels=mid_channels * 2**index,
                stride=stride,
                avg_down=avg_down,
                norm_cfg=self.norm_cfg,
            )
            self.add_module(name, layer)
            self.res_layers.append(name)
            channels, outputs = outputs, 2 * outputs
        self.feature_channels = channels
        self.space = space
        self.img_size = to_2tuple(img_size)
        self.in_channels = in_channels
        self.mask_token = nn.Parameter(torch.zeros(1, stem_channels, 1, 1))
        self._freeze_stages()

    def forward(self, x: Tensor, subnet: Subnet | None = None, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Feature maps of the stages in ``out_indices``.

        Args:
            x: Images, ``(B, C, H, W)``.
            subnet: What to compute. Default: the whole network.
            mask: Cells of the grid of :meth:`mask_grid` whose stem features are replaced by the mask token,
                boolean ``(B, N)``. Default: none.

        Returns:
            Maps ``(B, 4 * base_channels * 2**i, rows, columns)`` of the stages ``i``.

        Raises:
            ValueError: If the subnet is not in the space or the mask does not fit the grid.
        """
        maps = self._stage_maps(x, subnet, mask)
        return tuple(maps[index] for index in self.out_indices)

    def extract_features(
        self, x: Tensor, subnet: Subnet | None = None, mask: Tensor | None = None, part: BatchPart | None = None
    ) -> Features:
        """Class and patch features from the last stage; arguments and errors as :meth:`forward`.

        Nothing is drawn here, so it makes no difference whether images are a ``part`` of a larger batch.
        """
        return map_features(self._stage_maps(x, subnet, mask)[-1])

    @staticmethod
    def plain_features(network: ResNet, x: Tensor) -> Features:
        """The same by an extracted ``network``."""
        return map_features(network(x)[-1])

    @staticmethod
    def subnet_of(network: ResNet) -> Subnet:
        """The subnet that an extracted ``network`` is."""
        width = network.mid_channels if isinstance(network, BottleneckResNet) else network.base_channels
        return Subnet(width, tuple(network.stage_blocks))

    def _stage_maps(self, x: Tensor, subnet: Subnet | None, mask: Tensor | None) -> list[Tensor]:
        subnet = self.space.parse(subnet or self.space.largest)
        ratio = Fraction(subnet.width, self.mid_channels)
        grid = self.mask_grid(tuple(x.shape[-2:]))
        x = self.stem(x) if self.deep_stem else self.relu(self.norm1(self.conv1(x)))
        x = self.maxpool(x)
        if mask is not None:
            if mask.shape != (len(x), grid[0] * grid[1]):
                raise ValueError(
                    f'mask of shape {tuple(mask.shape)} does not fit {len(x)} images with a grid of {grid}'
                )
            cells = F.interpolate(mask.view(-1, 1, *grid).to(x.dtype), x.shape[-2:]).bool()  # nearest
            x = torch.where(cells, self.mask_token.to(x.dtype), x)
        maps = []
        for blocks in self._blocks(subnet):
            for block in blocks.values():
                x = run_block(block, x, ratio, with_cp=self.with_cp)
            maps.append(x)
        return maps

    def _blocks(self, subnet: Subnet) -> list[dict[str, ElasticBottleneck]]:
        """Blocks in use in each stage, by their names in the extracted network."""
        return [
            {
                f'{stage}.{position}': getattr(self, stage)[index]
                for position, index in enumerate(kept_blocks(depth, max_depth))
            }
            for stage, depth, max_depth in zip(self.res_layers, subnet.depth, self.stage_blocks)
        ]

    def mask_grid(self, image_size: tuple[int, int], subnet: Subnet | None = None) -> tuple[int, int]:
        """Rows and columns of patches in images of ``(H, W)`` pixels: twice those of the last feature map."""
        grid = []
        for size in image_size:
            for stride in (2, 2, *self.strides):  # convolution and pooling of the stem, then the stages
                size = -(-size // stride)
            grid.append(2 * size)
        return tuple(grid)

    def channels_of(self, subnet: Subnet) -> int:
        """Channels of the class and patch features, the same for all subnets."""
        self.space.parse(subnet)
        return self.feature_channels

    def extract(self, subnet: Subnet) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Config and state dict of the plain network that equals ``subnet``.

        That is the stock ``mmpretrain.ResNet`` for the depths that it knows (50, 101 and 152) with mid
        channels of which the outputs are a multiple (64 and 128, but not 96), else a :class:`BottleneckResNet`.

        Raises:
            ValueError: If the subnet is not in the space.
        """
        subnet = self.space.parse(subnet)
        ratio = Fraction(subnet.width, self.mid_channels)
        modules = {name: self.get_submodule(name) for name in self.stem_modules}
        for blocks in self._blocks(subnet):
            modules |= blocks
        state = {
            f'{name}.{key}': value
            for name, module in modules.items()
            for key, value in sliced_state_dict(module, ratio, keep_rest=True).items()
        }
        config = resnet_config(
            subnet,
            in_channels=self.in_channels,
            stem_channels=self.stem_channels,
            base_channels=self.base_channels,
            strides=self.strides,
            num_groups=self.norm_cfg['num_groups'],
            deep_stem=self.deep_stem,
            avg_down=self.avg_down,
        )
        if self.frozen_stages >= 0:
            config['frozen_stages'] = self.frozen_stages
        if self.norm_eval:
            config['norm_eval'] = True
        return config, state

    def cost(self, subnet: Subnet, image_size: int | tuple[int, int] | None = None) -> Cost:
        """Parameters and FLOPs of the extracted ``subnet`` on images of ``image_size`` pixels.

        Default: ``img_size``.
        """
        subnet = self.space.parse(subnet)
        return resnet_cost(
            subnet.width,
            subnet.depth,
            image_size=to_2tuple(image_size or self.img_size),
            out_channels=4 * self.base_channels,
            stem_channels=self.stem_channels,
            in_channels=self.in_channels,
            strides=self.strides,
            deep_stem=self.deep_stem,
        )


def resnet_config(
    subnet: Subnet,
    *,
    in_channels: int,
    stem_channels: int,
    base_channels: int,
    strides: tuple[int, ...],
    num_groups: int,
    deep_stem: bool = False,
    avg_down: bool = False,
) -> dict[str, Any]:
    """Config of the plain network that a subnet is; :meth:`ElasticResNet.extract` says which class it is of.

    Args:
        subnet: The subnet.
        in_channels: As of :class:`ElasticResNet`, as are the others.
    """
    outputs = 4 * base_channels
    stock_depths = {blocks: depth for depth, (_, blocks) in ResNet.arch_settings.items() if depth >= 50}
    if subnet.depth in stock_depths and outputs % subnet.width == 0:
        sizes = dict(
            type='ResNet',
            depth=stock_depths[subnet.depth],
            base_channels=subnet.width,
            expansion=outputs // subnet.width,
        )
    else:
        sizes = dict(
            type='BottleneckResNet',
            stage_blocks=subnet.depth,
            mid_channels=subnet.width,
            base_channels=base_channels,
        )
    return dict(
        **sizes,
        in_channels=in_channels,
        stem_channels=stem_channels,
        strides=strides,
        norm_cfg=dict(type='GN', num_groups=num_groups),
        **{name: True for name, is_on in dict(deep_stem=deep_stem, avg_down=avg_down).items() if is_on},
    )


def _space(
    stage_blocks: tuple[int, ...],
    mid_channels: int,
    widths: Iterable[int] | None,
    depths: Sequence[int | Iterable[int]] | None,
    standard: Mapping[str, Subnet],
    aliases: Mapping[str, str] | None,
) -> SubnetSpace:
    if len(stage_blocks) != 4:
        raise ValueError(f'stage_blocks {stage_blocks} must be four numbers')
    if widths is None:
        widths = {-(-mid_channels * quarters // 4) for quarters in (2, 3, 4)}
    if depths is None:
        first, second, third, fourth = stage_blocks
        depths = ([first], range(-(-second // 2), second + 1), range(-(-third // 6), third + 1), [fourth])
    depths = [[stage] if isinstance(stage, int) else stage for stage in depths]
    space = SubnetSpace(widths, depths)
    whole = Subnet(mid_channels, stage_blocks)
    if space.largest != whole:
        raise ValueError(f'the largest of {space.describe()} must be the whole network, {whole}')
    if aliases is None:
        aliases = {name: subnet for name, subnet in standard.items() if subnet in space}
    return SubnetSpace(space.widths, space.stages, aliases)
