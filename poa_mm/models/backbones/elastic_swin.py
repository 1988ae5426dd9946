"""Elastic Swin transformer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from mmengine.model import ModuleList
from mmengine.registry import MODELS
from mmengine.utils import to_2tuple
from mmpretrain.models.backbones import SwinTransformer
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from mmpretrain.models.utils import resize_pos_embed
from torch import Tensor, nn

from poa_mm.elastic import (
    Cost,
    ElasticLayerNorm,
    Subnet,
    SubnetSpace,
    kept_blocks,
    leading,
    sliced_state_dict,
    swin_cost,
)

from .elastic_backbone import BatchPart, Features, OnePatchSize, map_features, run_block
from .elastic_swin_layers import NORM_EPS, ElasticSwinBlock, ElasticSwinStage, ElasticSwinStem
from .elastic_transformer import dropout
from .swin_config import ELASTIC_STAGE, stage_depths, swin_config


@MODELS.register_module()
class ElasticSwinTransformer(OnePatchSize, SwinTransformer):
    """Swin transformer that computes any of its subnets (POA, Sec. 3.2).

    At full size it is mmpretrain's ``SwinTransformer``, block for block; its forward takes the subnet to compute. The
    width of a subnet is that of its first stage, doubled from stage to stage; its depth is that of the third stage, the
    others stay whole. The stem is told the width; every later layer reads it off its input.

    It takes mmpretrain's options as below, and extraction carries each over. It does not take ``stage_cfgs``,
    ``patch_cfg`` and ``norm_cfg``: a subnet keeps any of the blocks, so all have to be alike and sliceable.

    A block keeps its shift (or has none) whatever is dropped around it, as in the authors' code. Two
    neighbours in a subnet may therefore both be shifted; the config of the extracted network says so by
    ``stage_cfgs``. Maps that do not divide into windows are padded.

    The class feature is the mean of the last feature map; patches and masks lie on a grid twice as fine as
    that map. A mask replaces what the stem gives, after its norm.

    Args:
        arch: A name of ``arch_zoo`` (those of mmpretrain's ``SwinTransformer``, but with heads of 16 channels
            instead of 32, which is the step of the widths) or a dict with ``embed_dims``, ``depths`` and
            ``num_heads``, the latter two for each of four stages: the largest subnet. Default: ``'base'``.
        widths: Widths of the subnets, multiples of the head's channels up to ``embed_dims``.
            Default: every number of heads from 6 up: 96, 112, 128 for ``'base'``.
        depths: Depths of the subnets, up to the third of ``arch``'s ``depths``. Default: from a third of
            that up: 6 .. 18 for ``'base'``.
        aliases: Names of subnets. Default: ``tiny``, ``small``, ``base`` and ``large`` (Swin-T, -S, -B, -L)
            where the space holds them.
        img_size: Height and width in pixels that costs are given for; any size can be computed. Default: 224.
        patch_size: Height and width of a patch in pixels. Default: 4.
        in_channels: Channels of the images. Default: 3.
        window_size: Rows and columns of a window. Default: 7.
        out_indices: Stages whose output is returned, the last (3) among them. Default: (3,).
        use_abs_pos_embed: Add a learned position embedding to what the stem gives, resized to other grids than that of
            ``img_size``. Default: False.
        pad_small_map: Pad maps that are smaller than a window, too, so that images of any size can be computed.
            Default: True (mmpretrain's is False).
        unshifted_stages: Stages none of whose blocks is shifted. Other libraries do not shift those whose map is not
            larger than a window, such as the last (3) of images of 224 pixels; with ``pad_small_map``, mmpretrain does.
            Default: (), every other block of every stage is shifted.
        frozen_stages: The last stage that does not train, with all before it: 0 is the stem and the first stage, as
            mmpretrain counts. Default: -1, none.
        norm_eval: As of mmpretrain's class, for which it concerns BatchNorm only; there is none. Default: False.
        drop_rate: Dropout of what the stem gives, in training. Default: 0.
        drop_path_rate: Share of the batch that skips each residual branch in training, the same in all
            blocks. Default: 0.
        stem_norm: Channels that the LayerNorm of the stem runs over. ``'sliced'``: those of the subnet, as in
            a plain network of its width, so that an extracted subnet is exactly what was trained. ``'full'``:
            all, before the cut, as in the authors' code and what was trained with it. No plain network can do
            that (mean and variance need the channels that were cut), so that only subnets of full width can
            be extracted. Default: ``'sliced'``.
        with_cp: Keep the inputs of each block only, and compute the block again in the backward pass: the same
            results in much less memory and more time. Default: False.
        init_cfg: mmengine's initialisation config. Default: truncated normal of std 0.02 for linear layers.

    Raises:
        ValueError: If arch, widths, depths, out_indices, drop_path_rate or stem_norm are not valid.
    """

    arch_zoo = {
        name: {**arch, 'num_heads': [2 * heads for heads in arch['num_heads']]}
        for name, arch in SwinTransformer.arch_zoo.items()
    }
    STANDARD_SUBNETS: Mapping[str, Subnet] = {
        'tiny': Subnet(96, 6),
        'small': Subnet(96, 18),
        'base': Subnet(128, 18),
        'large': Subnet(192, 18),
    }
    STEM_NORMS = ('sliced', 'full')
    stem_modules = ('patch_embed',)
    block = ElasticSwinBlock
    neck = dict(type='GlobalAveragePooling')
    elastic_options = ('stem_norm',)
    training_options = ('frozen_stages', 'norm_eval', 'drop_rate')

    def __init__(
        self,
        arch: str | Mapping[str, Any] = 'base',
        widths: Iterable[int] | None = None,
        depths: Iterable[int] | None = None,
        aliases: Mapping[str, str] | None = None,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 4,
        in_channels: int = 3,
        window_size: int = 7,
        out_indices: Sequence[int] = (3,),
        drop_path_rate: float = 0.0,
        stem_norm: str = 'sliced',
        use_abs_pos_embed: bool = False,
        pad_small_map: bool = True,
        unshifted_stages: Sequence[int] = (),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        drop_rate: float = 0.0,
        with_cp: bool = False,
        init_cfg: dict | list | None = None,
    ):
        # Not SwinTransformer.__init__: it would build all of its own stages, only to be replaced.
        BaseBackbone.__init__(self, init_cfg or dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0))
        self.arch_settings = self._arch_settings(arch)
        self.embed_dims = self.arch_settings['embed_dims']
        self.depths = self.arch_settings['depths']
        self.num_heads = self.arch_settings['num_heads']
        self.head_dim = self.embed_dims // self.num_heads[0]
        self.space = self._space(widths, depths, aliases)
        self.num_layers = len(self.depths)
        self.stage_channels = [self.embed_dims * 2**stage for stage in range(self.num_layers)]
        self.feature_channels = self.stage_channels[-1]

        last = self.num_layers - 1
        if not {last} <= set(out_indices) <= set(range(self.num_layers)):
            raise ValueError(f'out_indices {out_indices} must be among 0 .. {last} and hold {last}')
        for name, rate in dict(drop_path_rate=drop_path_rate, drop_rate=drop_rate).items():
            if not 0 <= rate < 1:
                raise ValueError(f'{name} {rate} is not in [0, 1)')
        if not -1 <= frozen_stages <= last:
            raise ValueError(f'frozen_stages {frozen_stages} is not among -1 (none), 0 .. {last}')
        if not set(unshifted_stages) <= set(range(self.num_layers)):
            raise ValueError(f'unshifted_stages {list(unshifted_stages)} are not among 0 .. {last}')
        if stem_norm not in self.STEM_NORMS:
            raise ValueError(f'stem_norm {stem_norm!r} is not one of {", ".join(self.STEM_NORMS)}')
        self.out_indices = tuple(sorted(set(out_indices)))
        self.drop_path_rate = drop_path_rate
        self.stem_norm = stem_norm
        self.with_cp = with_cp
        self.img_size = to_2tuple(img_size)
        self.patch_size = patch_size
        self.in_channels = in_channels
        self.window_size = window_size
        self.frozen_stages, self.norm_eval = frozen_stages, norm_eval
        self.use_abs_pos_embed, self.interpolate_mode = use_abs_pos_embed, 'bicubic'
        self.pad_small_map, self.drop_rate = pad_small_map, drop_rate
        self.unshifted_stages = tuple(sorted(set(unshifted_stages)))

        self.patch_embed = ElasticSwinStem(
            stem_norm,
            in_channels=in_channels,
            embed_dims=self.embed_dims,
            kernel_size=patch_size,
            stride=patch_size,
            input_size=self.img_size,
        )
        self.patch_resolution = self.patch_embed.init_out_size
        if use_abs_pos_embed:
            self.absolute_pos_embed = nn.Parameter(torch.zeros(1, math.prod(self.patch_resolution), self.embed_dims))
            self._register_load_state_dict_pre_hook(self._prepare_abs_pos_embed)
        self.drop_after_pos = dropout(drop_rate)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.embed_dims))
        self.stages = ModuleList(
            ElasticSwinStage(
                width,
                depth,
                downsample=stage < last,
                shifted=stage not in self.unshifted_stages,
                head_dim=self.head_dim,
                window_size=window_size,
                drop_path_rate=drop_path_rate,
                pad_small_map=pad_small_map,
            )
            for stage, (width, depth) in enumerate(zip(self.stage_channels, self.depths))
        )
        for stage in self.out_indices:
            self.add_module(f'norm{stage}', ElasticLayerNorm(self.stage_channels[stage], NORM_EPS))
        self._freeze_stages()

    @classmethod
    def _arch_settings(cls, arch: str | Mapping[str, Any]) -> dict[str, Any]:
        if isinstance(arch, str):
            if arch.lower() not in cls.arch_zoo:
                raise ValueError(f'arch {arch!r} is not one of {", ".join(cls.arch_zoo)}')
            return dict(cls.arch_zoo[arch.lower()])
        if set(arch) != {'embed_dims', 'depths', 'num_heads'}:
            raise ValueError(f"arch {dict(arch)} needs exactly the keys ['depths', 'embed_dims', 'num_heads']")
        width, heads = arch['embed_dims'], list(arch['num_heads'])
        if len(arch['depths']) != 4 or heads != [heads[0] * 2**stage for stage in range(4)] or width % heads[0]:
            raise ValueError(
                f'arch {dict(arch)} needs depths and num_heads of four stages, num_heads doubled from each to '
                'the next, the first a divisor of embed_dims'
            )
        return dict(embed_dims=width, depths=list(arch['depths']), num_heads=heads)

    def _space(
        self, widths: Iterable[int] | None, depths: Iterable[int] | None, aliases: Mapping[str, str] | None
    ) -> SubnetSpace:
        heads, depth = self.num_heads[0], self.depths[ELASTIC_STAGE]
        if widths is None:
            widths = [self.head_dim * n for n in range(min(6, heads), heads + 1)]
        if depths is None:
            depths = range(-(-depth // 3), depth + 1)
        space = SubnetSpace(widths, depths)
        whole = Subnet(self.embed_dims, depth)
        if space.largest != whole:
            raise ValueError(f'the largest of {space.describe()} must be the whole network, {whole}')
        for width in space.widths:
            if width % self.head_dim:
                raise ValueError(f'width {width} does not divide into heads of {self.head_dim} channels')
        if aliases is None:
            aliases = {name: subnet for name, subnet in self.STANDARD_SUBNETS.items() if subnet in space}
        return SubnetSpace(space.widths, space.depths, aliases)

    def forward(self, x: Tensor, subnet: Subnet | None = None, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Normalised feature maps of the stages in ``out_indices``.

        Args:
            x: Images, ``(B, C, H, W)``.
            subnet: What to compute. Default: the whole network.
            mask: Cells of the grid of :meth:`mask_grid` whose tokens are replaced by the mask token, boolean
                ``(B, N)``. Default: none.

        Returns:
            Maps ``(B, width * 2**i, rows, columns)`` of the stages ``i``.

        Raises:
            ValueError: If the subnet is not in the space or the mask does not fit the grid.
        """
        maps = enumerate(self._stage_outputs(x, subnet, mask))
        return tuple(self._feature_map(stage, *output) for stage, output in maps if stage in self.out_indices)

    def extract_features(
        self, x: Tensor, subnet: Subnet | None = None, mask: Tensor | None = None, part: BatchPart | None = None
    ) -> Features:
        """Class and patch features from the last stage; as :meth:`forward`, ``part`` as of ``add_branch``."""
        *_, output = self._stage_outputs(x, subnet, mask, part)
        return map_features(self._feature_map(self.num_layers - 1, *output))

    @staticmethod
    def plain_features(network: SwinTransformer, x: Tensor) -> Features:
        """The same by an extracted ``network``."""
        return map_features(network(x)[-1])

    @staticmethod
    def subnet_of(network: SwinTransformer) -> Subnet:
        """The subnet that an extracted ``network`` is."""
        return Subnet(network.embed_dims, network.depths[ELASTIC_STAGE])

    def _stage_outputs(
        self, x: Tensor, subnet: Subnet | None, mask: Tensor | None, part: BatchPart | None = None
    ) -> Iterator[tuple[Tensor, tuple[int, int]]]:
        """Tokens ``(B, rows * columns, channels)`` that leave the blocks of each stage, and their grid."""
        subnet = self.space.parse(subnet or self.space.largest)
        mask_grid = self.mask_grid(tuple(x.shape[-2:]))
        x, grid = self.patch_embed(x, subnet.width)
        if mask is not None:
            if mask.shape != (len(x), mask_grid[0] * mask_grid[1]):
                raise ValueError(f'mask of shape {tuple(mask.shape)} does not fit {len(x)} images, grid {mask_grid}')
            cell = 2 ** (self.num_layers - 1) // 2  # tokens on a side
            mask = mask.view(-1, *mask_grid).repeat_interleave(cell, 1).repeat_interleave(cell, 2)
            mask = mask[:, : grid[0], : grid[1]].reshape(len(x), -1, 1)  # stages pad below and to the right
            x = torch.where(mask, leading(self.mask_token, subnet.width).to(x.dtype), x)
        if self.use_abs_pos_embed:
            position = leading(self.absolute_pos_embed, subnet.width)
            x = x + resize_pos_embed(position, self.patch_resolution, grid, self.interpolate_mode, num_extra_tokens=0)
        x = self.drop_after_pos(x)
        for stage, blocks in zip(self.stages, self._blocks(subnet)):
            for block in blocks:
                x = run_block(block, x, grid, part, with_cp=self.with_cp)
            yield x, grid
            if stage.downsample is not None:
                x, grid = stage.downsample(x, grid)

    def _feature_map(self, stage: int, x: Tensor, grid: tuple[int, int]) -> Tensor:
        x = getattr(self, f'norm{stage}')(x)
        return x.transpose(1, 2).unflatten(2, grid).contiguous()

    def _blocks(self, subnet: Subnet) -> list[list[ElasticSwinBlock]]:
        """Blocks in use in each stage."""
        depths = self._stage_depths(subnet)
        return [
            [stage.blocks[index] for index in kept_blocks(depth, len(stage.blocks))]
            for stage, depth in zip(self.stages, depths)
        ]

    def _stage_depths(self, subnet: Subnet) -> list[int]:
        return stage_depths(subnet, self.depths)

    def mask_grid(self, image_size: tuple[int, int], subnet: Subnet | None = None) -> tuple[int, int]:
        """Rows and columns of patches in images of ``(H, W)`` pixels: twice those of the last feature map."""
        stride = self.patch_size * 2 ** (self.num_layers - 1)
        return tuple(2 * -(-size // stride) for size in image_size)

    def channels_of(self, subnet: Subnet) -> int:
        """Channels of the class and patch features: eight times the width."""
        return self.space.parse(subnet).width * self.feature_channels // self.embed_dims

    def extract(self, subnet: Subnet) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Config and state dict of the stock ``mmpretrain.SwinTransformer`` that equals ``subnet``.

        Raises:
            ValueError: If the subnet is not in the space, or is narrower than a network with ``stem_norm='full'``.
        """
        subnet = self.space.parse(subnet)
        if self.stem_norm == 'full' and subnet.width < self.embed_dims:
            raise ValueError(
                f'no plain network equals subnet {subnet}: the norm of the stem runs over all '
                f"{self.embed_dims} channels (stem_norm='full'); only subnets of that width can be extracted"
            )
        blocks = self._blocks(subnet)
        modules = {'patch_embed': self.patch_embed}
        for stage, kept in enumerate(blocks):
            modules |= {f'stages.{stage}.blocks.{position}': block for position, block in enumerate(kept)}
            if self.stages[stage].downsample is not None:
                modules[f'stages.{stage}.downsample'] = self.stages[stage].downsample
        modules |= {f'norm{stage}': getattr(self, f'norm{stage}') for stage in self.out_indices}
        ratio = Fraction(subnet.width, self.embed_dims)
        state = {
            f'{name}.{key}': value
            for name, module in modules.items()
            for key, value in sliced_state_dict(module, ratio).items()
        }
        if self.use_abs_pos_embed:
            state['absolute_pos_embed'] = leading(self.absolute_pos_embed.detach(), subnet.width).clone()
        config = swin_config(
            subnet,
            self.depths,
            head_dim=self.head_dim,
            img_size=self.img_size,
            patch_size=self.patch_size,
            in_channels=self.in_channels,
            window_size=self.window_size,
            pad_small_map=self.pad_small_map,
            unshifted_stages=self.unshifted_stages,
        )
        others = dict(use_abs_pos_embed=self.use_abs_pos_embed, drop_rate=self.drop_rate, norm_eval=self.norm_eval)
        config |= {name: value for name, value in others.items() if value}
        if self.frozen_stages >= 0:
            config['frozen_stages'] = self.frozen_stages
        if self.out_indices != (self.num_layers - 1,):  # which is what the stock network does
            config['out_indices'] = self.out_indices
        return config, state

    def cost(self, subnet: Subnet, image_size: int | tuple[int, int] | None = None) -> Cost:
        """Parameters and FLOPs of the extracted ``subnet``, the latter for images of ``image_size`` pixels.

        Args:
            subnet: The subnet.
            image_size: Default: ``img_size``.
        """
        subnet = self.space.parse(subnet)
        return swin_cost(
            subnet.width,
            self._stage_depths(subnet),
            image_size=to_2tuple(image_size or self.img_size),
            head_dim=self.head_dim,
            window_size=self.window_size,
            patch_size=self.patch_size,
            in_channels=self.in_channels,
            normed_stages=self.out_indices,
            positions=math.prod(self.patch_resolution) if self.use_abs_pos_embed else 0,
        )

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """As mmpretrain's, but for two things.

        The mask token is beside the patch embedding (depth 0), and the merging layer between two stages belongs to the
        first block of the second one, as in the authors' code, not to the last of the first.
        """
        if param_name == f'{prefix}mask_token':
            return 0, sum(self.depths) + 2
        depth, num_depths = super().get_layer_depth(param_name, prefix)
        if param_name.startswith(f'{prefix}stages.') and '.downsample.' in param_name:
            depth += 1
        return depth, num_depths
