"""Elastic vision transformer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from mmengine.model import ModuleList
from mmengine.model.weight_init import trunc_normal_
from mmengine.registry import MODELS
from mmengine.utils import to_2tuple
from mmpretrain.models.backbones import VisionTransformer
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
    transformer_cost,
)

from .elastic_backbone import Features, run_block
from .elastic_transformer import ElasticEncoderLayer, ElasticPatchEmbed


@MODELS.register_module()
class ElasticVisionTransformer(VisionTransformer):
    """Vision transformer that computes any of its subnets (POA, Sec. 3.2).

    A drop-in for mmpretrain's ``VisionTransformer`` whose forward takes the subnet to compute. At full
    size it is that network, block for block. The patch projection is told the width; every later layer
    reads it off its input.

    Args:
        arch: A name of mmpretrain's ``VisionTransformer.arch_zoo`` or a dict with ``embed_dims``,
            ``num_layers``, ``num_heads`` and ``feedforward_channels``: the largest subnet.
            Default: ``'large'``.
        widths: Widths of the subnets, multiples of the head's channels up to ``embed_dims``.
            Default: every number of heads from 6 up: 384, 448 .. 1024 for ``'large'``.
        depths: Depths of the subnets, up to ``num_layers``. Default: from half of ``num_layers`` up.
        aliases: Names of subnets. Default: ``tiny``, ``small``, ``base`` and ``large`` (ViT-Ti, -S, -B,
            -L) where the space holds them.
        img_size: Height and width in pixels that the position embedding is made for; other sizes
            resize it. Default: 224.
        patch_size: Height and width of a patch in pixels. Default: 16.
        in_channels: Channels of the images. Default: 3.
        out_indices: Blocks whose output is returned, counted among the blocks in use; negative ones
            from the end. Default: -1.
        out_type: ``'cls_token'`` ``(B, D)``, ``'featmap'`` ``(B, D, rows, columns)`` or ``'raw'``
            ``(B, 1 + N, D)``. Default: ``'cls_token'``.
        drop_path_rate: Share of the batch that skips each residual branch in training, the same in all
            blocks. Default: 0.
        qkv_bias: Bias on query, key and value. Default: True.
        norm_cfg: Only ``eps`` of a ``'LN'`` can be chosen. Default: ``dict(type='LN', eps=1e-6)``.
        interpolate_mode: How the position embedding is resized. Default: ``'bicubic'``.
        layer_scale_init_value: Initial LayerScale; 0 means none. Default: 1e-5.
        with_cp: Keep the inputs of each block only, and compute the block again in the backward pass: the same
            results in much less memory and a quarter more time. Default: False.
        init_cfg: mmengine's initialisation config. Default: truncated normal of std 0.02 for linear
            layers.

    Raises:
        ValueError: If arch, widths, depths, out_indices or out_type are not valid.
    """

    STANDARD_SUBNETS: Mapping[str, Subnet] = {
        'tiny': Subnet(192, 12),
        'small': Subnet(384, 12),
        'base': Subnet(768, 12),
        'large': Subnet(1024, 24),
    }
    OUT_TYPES = ('cls_token', 'featmap', 'raw')
    stem_modules = ('patch_embed',)
    block = ElasticEncoderLayer
    neck = None  # the class token is the class feature
    elastic_options = ()

    def __init__(
        self,
        arch: str | Mapping[str, int] = 'large',
        widths: Iterable[int] | None = None,
        depths: Iterable[int] | None = None,
        aliases: Mapping[str, str] | None = None,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_channels: int = 3,
        out_indices: int | Sequence[int] = -1,
        out_type: str = 'cls_token',
        drop_path_rate: float = 0.0,
        qkv_bias: bool = True,
        norm_cfg: Mapping[str, Any] | None = None,
        interpolate_mode: str = 'bicubic',
        layer_scale_init_value: float = 1e-5,
        with_cp: bool = False,
        init_cfg: dict | list | None = None,
    ):
        # Not VisionTransformer.__init__: it would build all of its own blocks, only to be replaced.
        BaseBackbone.__init__(self, init_cfg or dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0))
        self.arch_settings = self._arch_settings(arch)
        self.embed_dims = self.feature_channels = self.arch_settings['embed_dims']
        self.num_layers = self.arch_settings['num_layers']
        self.hidden_dims = self.arch_settings['feedforward_channels']
        self.head_dim, rest = divmod(self.embed_dims, self.arch_settings['num_heads'])
        if rest:
            raise ValueError(
                f'embed_dims {self.embed_dims} is not a multiple of num_heads {self.arch_settings["num_heads"]}'
            )
        self.space = self._space(widths, depths, aliases)

        if out_type not in self.OUT_TYPES:
            raise ValueError(f'out_type {out_type!r} is not one of {", ".join(self.OUT_TYPES)}')
        self.out_type = out_type
        self.out_indices = [out_indices] if isinstance(out_indices, int) else list(out_indices)
        norm_cfg = dict(type='LN', eps=1e-6) | dict(norm_cfg or {})
        if norm_cfg['type'] != 'LN' or set(norm_cfg) > {'type', 'eps'}:
            raise ValueError(f"norm_cfg {norm_cfg} is not valid; only dict(type='LN', eps=...) is")
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f'drop_path_rate {drop_path_rate} is not in [0, 1)')
        self.norm_eps = norm_cfg['eps']
        self.drop_path_rate = drop_path_rate
        self.qkv_bias = qkv_bias
        self.layer_scale_init_value = layer_scale_init_value
        self.with_cp = with_cp

        self.img_size = to_2tuple(img_size)
        self.patch_size = to_2tuple(patch_size)
        self.in_channels = in_channels
        self.patch_embed = ElasticPatchEmbed(
            in_channels, self.embed_dims, kernel_size=patch_size, stride=patch_size, input_size=self.img_size
        )
        self.patch_resolution = self.patch_embed.init_out_size
        num_patches = self.patch_resolution[0] * self.patch_resolution[1]
        self.with_cls_token = self.final_norm = True
        self.cls_token = nn.Parameter(torch.zeros(1, 1, self.embed_dims))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.embed_dims))
        self.pos_embed = nn.Parameter(torch.zeros(1, num_patches + self.num_extra_tokens, self.embed_dims))
        self.interpolate_mode = interpolate_mode
        self._register_load_state_dict_pre_hook(self._prepare_pos_embed)

        self.layers = ModuleList(
            ElasticEncoderLayer(
                self.embed_dims,
                self.head_dim,
                self.hidden_dims,
                qkv_bias,
                self.norm_eps,
                layer_scale_init_value,
                drop_path_rate,
            )
            for _ in range(self.num_layers)
        )
        self.ln1 = ElasticLayerNorm(self.embed_dims, self.norm_eps)

    @classmethod
    def _arch_settings(cls, arch: str | Mapping[str, int]) -> dict[str, int]:
        if isinstance(arch, str):
            if arch.lower() not in cls.arch_zoo:
                raise ValueError(f'arch {arch!r} is not one of {", ".join(cls.arch_zoo)}')
            return dict(cls.arch_zoo[arch.lower()])
        needed = {'embed_dims', 'num_layers', 'num_heads', 'feedforward_channels'}
        if set(arch) != needed:
            raise ValueError(f'arch {dict(arch)} needs exactly the keys {sorted(needed)}')
        return dict(arch)

    def _space(
        self,
        widths: Iterable[int] | None,
        depths: Iterable[int] | None,
        aliases: Mapping[str, str] | None,
    ) -> SubnetSpace:
        heads = self.embed_dims // self.head_dim
        if widths is None:
            widths = [self.head_dim * n for n in range(min(6, heads), heads + 1)]
        if depths is None:
            depths = range((self.num_layers + 1) // 2, self.num_layers + 1)
        space = SubnetSpace(widths, depths)
        if space.largest != Subnet(self.embed_dims, self.num_layers):
            raise ValueError(
                f'the largest of {space.describe()} must be the whole network, {self.embed_dims}x{self.num_layers}'
            )
        for width in space.widths:
            if width % self.head_dim or self.hidden_dims * width % self.embed_dims:
                raise ValueError(f'width {width} does not divide into heads of {self.head_dim} channels')
        if aliases is None:
            aliases = {name: subnet for name, subnet in self.STANDARD_SUBNETS.items() if subnet in space}
        return SubnetSpace(space.widths, space.depths, aliases)

    def init_weights(self) -> None:
        """Initialise the weights: position embedding, class and mask token, then by ``init_cfg``."""
        BaseBackbone.init_weights(self)
        if not (isinstance(self.init_cfg, dict) and self.init_cfg['type'] == 'Pretrained'):
            trunc_normal_(self.pos_embed, std=0.02)
            nn.init.normal_(self.cls_token, std=1e-6)

    def forward(self, x: Tensor, subnet: Subnet | None = None, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Outputs of the chosen blocks.

        Args:
            x: Images, ``(B, C, H, W)``.
            subnet: What to compute. Default: the whole network.
            mask: Patches replaced by the mask token, boolean ``(B, N)``. Default: none.

        Returns:
            One tensor for each of ``out_indices``, shaped as ``out_type`` says.

        Raises:
            ValueError: If the subnet is not in the space, the mask does not fit the grid or an index
                is beyond the blocks in use.
        """
        subnet = subnet or self.space.largest
        wanted = [index + subnet.depth if index < 0 else index for index in self.out_indices]
        if not all(0 <= index < subnet.depth for index in wanted):
            raise ValueError(f'out_indices {self.out_indices} do not fit the {subnet.depth} blocks of {subnet}')
        x, grid = self._embed(x, subnet, mask)
        outs = {}
        for index, block in enumerate(self._blocks(subnet)):
            x = run_block(block, x, with_cp=self.with_cp)
            if index in wanted:
                outs[index] = self._format_output(self.ln1(x) if index == subnet.depth - 1 else x, grid)
        return tuple(outs[index] for index in wanted)

    def extract_features(self, x: Tensor, subnet: Subnet | None = None, mask: Tensor | None = None) -> Features:
        """Class and patch features after the final norm; arguments and errors as :meth:`forward`."""
        subnet = subnet or self.space.largest
        x, _ = self._embed(x, subnet, mask)
        for block in self._blocks(subnet):
            x = run_block(block, x, with_cp=self.with_cp)
        return _split(self.ln1(x))

    @staticmethod
    def plain_features(network: VisionTransformer, x: Tensor) -> Features:
        """The same by an extracted ``network``, whose ``out_type`` becomes ``'raw'``."""
        network.out_type = 'raw'
        return _split(network(x)[-1])

    @staticmethod
    def subnet_of(network: VisionTransformer) -> Subnet:
        """The subnet that an extracted ``network`` is."""
        return Subnet(network.embed_dims, network.num_layers)

    def _embed(self, x: Tensor, subnet: Subnet, mask: Tensor | None) -> tuple[Tensor, tuple[int, int]]:
        """Tokens ``(B, 1 + N, width)`` that enter the first block, and their grid."""
        width = self.space.parse(subnet).width
        x, grid = self.patch_embed(x, width)
        if mask is not None:
            if mask.shape != x.shape[:2]:
                raise ValueError(f'mask of shape {tuple(mask.shape)} does not fit tokens {tuple(x.shape[:2])}')
            x = torch.where(mask.unsqueeze(-1), leading(self.mask_token, width).to(x.dtype), x)
        x = torch.cat([leading(self.cls_token, width).expand(len(x), -1, -1), x], dim=1)
        pos_embed = leading(self.pos_embed, width)
        if grid != tuple(self.patch_resolution) and x.is_cuda and torch.are_deterministic_algorithms_enabled():
            pos_embed = self._weighted(pos_embed, grid)
        else:
            pos_embed = self._resized(pos_embed, grid)
        return x + pos_embed, grid

    def _resized(self, pos_embed: Tensor, grid: tuple[int, int]) -> Tensor:
        """Position embeddings ``(1, L, D)`` for another grid."""
        return resize_pos_embed(
            pos_embed, self.patch_resolution, grid, mode=self.interpolate_mode, num_extra_tokens=self.num_extra_tokens
        )

    def _weighted(self, pos_embed: Tensor, grid: tuple[int, int]) -> Tensor:
        """The same, as a product with a matrix: GPUs interpolate back with sums in random order."""
        with torch.autocast(pos_embed.device.type, enabled=False):
            weights = self._resized(torch.eye(pos_embed.shape[1], device=pos_embed.device)[None], grid)  # (1, L', L)
            return weights.to(pos_embed.dtype) @ pos_embed

    def _blocks(self, subnet: Subnet) -> list[ElasticEncoderLayer]:
        return [self.layers[index] for index in kept_blocks(subnet.depth, self.num_layers)]

    def mask_grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches in images of ``(H, W)`` pixels; partial patches count."""
        return tuple(-(-size // patch) for size, patch in zip(image_size, self.patch_size))

    def channels_of(self, subnet: Subnet) -> int:
        """Channels of the class and patch features: the width."""
        return self.space.parse(subnet).width

    def extract(self, subnet: Subnet) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Config and state dict of the stock ``mmpretrain.VisionTransformer`` that equals ``subnet``.

        Raises:
            ValueError: If the subnet is not in the space.
        """
        subnet = self.space.parse(subnet)
        ratio = Fraction(subnet.width, self.embed_dims)
        tokens = {'cls_token': self.cls_token, 'pos_embed': self.pos_embed}
        state = {name: leading(token.detach(), subnet.width).clone() for name, token in tokens.items()}
        modules = {'patch_embed': self.patch_embed, 'ln1': self.ln1}
        modules |= {f'layers.{position}': block for position, block in enumerate(self._blocks(subnet))}
        for name, module in modules.items():
            state.update({f'{name}.{key}': value for key, value in sliced_state_dict(module, ratio).items()})
        config = dict(
            type='VisionTransformer',
            arch=dict(
                embed_dims=subnet.width,
                num_layers=subnet.depth,
                num_heads=subnet.width // self.head_dim,
                feedforward_channels=int(self.hidden_dims * ratio),
            ),
            img_size=self.img_size,
            patch_size=self.patch_size,
            in_channels=self.in_channels,
            qkv_bias=self.qkv_bias,
            norm_cfg=dict(type='LN', eps=self.norm_eps),
            interpolate_mode=self.interpolate_mode,
            layer_scale_init_value=self.layer_scale_init_value,
        )
        return config, state

    def cost(self, subnet: Subnet, image_size: int | tuple[int, int] | None = None) -> Cost:
        """Parameters and FLOPs of the extracted ``subnet`` on images of ``image_size`` pixels.

        The parameters are those of a network made for ``image_size``. Default: ``img_size``.
        """
        subnet = self.space.parse(subnet)
        rows, columns = self.mask_grid(to_2tuple(image_size or self.img_size))
        return transformer_cost(
            subnet.width,
            subnet.depth,
            tokens=rows * columns,
            patch_inputs=self.in_channels * self.patch_size[0] * self.patch_size[1],
            mlp_ratio=Fraction(self.hidden_dims, self.embed_dims),
            qkv_bias=self.qkv_bias,
            layer_scale=self.layer_scale_init_value > 0,
        )

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """As mmpretrain's, with the mask token beside the other embeddings (depth 0)."""
        if param_name == f'{prefix}mask_token':
            return 0, self.num_layers + 2
        return super().get_layer_depth(param_name, prefix)


def _split(tokens: Tensor) -> Features:
    """Class and patch tokens of ``(B, 1 + N, D)``."""
    return Features(cls=tokens[:, 0], patch=tokens[:, 1:])
