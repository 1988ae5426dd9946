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
from torch import Tensor, nn

from poa_mm.elastic import (
    Cost,
    ElasticLayerNorm,
    Subnet,
    kept_blocks,
    leading,
    resize_grid,
    sliced_state_dict,
    transformer_cost,
)

from .elastic_backbone import BatchPart, Features, run_block
from .elastic_transformer import ElasticEncoderLayer, ElasticPatchEmbed, dropout, resize_positions
from .vit_config import vit_config
from .vit_space import check_whole_patches, vit_arch, vit_space


@MODELS.register_module()
class ElasticVisionTransformer(VisionTransformer):
    """Vision transformer that computes any of its subnets (POA, Sec. 3.2).

    At full size it is mmpretrain's ``VisionTransformer``, block for block; its forward takes the subnet to compute. The
    patch projection is told the width and the patch size; every later layer reads both off its input: channels and
    number of tokens.

    It takes that class's options as below. It does not take ``layer_cfgs`` for each block by itself or with another
    kind of FFN, nor other norms than ``'LN'``: a subnet keeps any of the blocks, so all have to be alike and sliceable.
    Extraction carries each option over.

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
        patch_size: Height and width of a patch in pixels, the native ones. Default: 16.
        in_channels: Channels of the images. Default: 3.
        out_indices: Blocks whose output is returned, counted among the blocks in use; negative ones
            from the end. Default: -1.
        out_type: ``'cls_token'`` ``(B, D)``, ``'featmap'`` ``(B, D, rows, columns)``, ``'raw'`` ``(B, 1 + N, D)``, or
            ``'avg_featmap'`` ``(B, D)``, a LayerNorm of the mean patch, which is then the class feature, too.
            Default: ``'cls_token'``.
        with_cls_token: Use a class token. Without, the mean patch is the class feature. Default: True.
        final_norm: LayerNorm after the last block. Default: True.
        pre_norm: LayerNorm before the first block, and no bias of the patch projection. Default: False.
        frozen_stages: Number of leading blocks of the whole network that do not train, with all before them. A subnet
            is extracted with as many as it keeps of them. 0 or less: nothing is frozen. Default: -1.
        drop_rate: Dropout of tokens, attention outputs and MLPs in training. Default: 0.
        patch_cfg: Only ``bias`` of the patch projection can be chosen. Default: none.
        layer_cfgs: For all blocks alike: ``drop_rate``, ``attn_drop_rate``, ``drop_path_rate``. Default: none.
        drop_path_rate: Share of the batch that skips each residual branch in training, the same in all
            blocks. Default: 0.
        qkv_bias: Bias on query, key and value. Default: True.
        norm_cfg: Only ``eps`` of a ``'LN'`` can be chosen. Default: ``dict(type='LN', eps=1e-6)``.
        interpolate_mode: How the position embedding is resized. Default: ``'bicubic'``.
        layer_scale_init_value: Initial LayerScale; 0 means none. Default: 1e-5.
        patch_sizes: Patch sizes of the subnets in pixels, ``patch_size`` among them: ``(8, 16, 32)``. The kernel of the
            projection and the position embedding are resized from the native ones; heights and widths of images have
            to be multiples of all. Default: none, ``patch_size`` is the only one.
        with_cp: Keep the inputs of each block only, and compute the block again in the backward pass: the same
            results in much less memory and a quarter more time. Default: False.
        init_cfg: mmengine's initialisation config. Default: truncated normal of std 0.02 for linear
            layers.

    Raises:
        ValueError: If an option is not valid; names it and what is.
        TypeError: If ``layer_cfgs`` is given block by block.
    """

    STANDARD_SUBNETS: Mapping[str, Subnet] = {
        'tiny': Subnet(192, 12),
        'small': Subnet(384, 12),
        'base': Subnet(768, 12),
        'large': Subnet(1024, 24),
    }
    OUT_TYPES = ('cls_token', 'featmap', 'raw', 'avg_featmap')
    LAYER_OPTIONS = ('drop_rate', 'attn_drop_rate', 'drop_path_rate')
    stem_modules = ('patch_embed',)
    block = ElasticEncoderLayer
    neck: Mapping[str, Any] | None = None  # the class token is the class feature
    elastic_options = ()
    training_options = ('frozen_stages', 'drop_rate', 'layer_cfgs')

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
        with_cls_token: bool = True,
        final_norm: bool = True,
        pre_norm: bool = False,
        frozen_stages: int = -1,
        drop_rate: float = 0.0,
        patch_cfg: Mapping[str, Any] | None = None,
        layer_cfgs: Mapping[str, Any] | None = None,
        patch_sizes: Iterable[int] | None = None,
        with_cp: bool = False,
        init_cfg: dict | list | None = None,
    ):
        # Not VisionTransformer.__init__: it would build all of its own blocks, only to be replaced.
        BaseBackbone.__init__(self, init_cfg or dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0))
        self.arch_settings = vit_arch(arch, self.arch_zoo)
        self.embed_dims = self.feature_channels = self.arch_settings['embed_dims']
        self.num_layers = self.arch_settings['num_layers']
        self.hidden_dims = self.arch_settings['feedforward_channels']
        self.head_dim, rest = divmod(self.embed_dims, self.arch_settings['num_heads'])
        if rest:
            raise ValueError(
                f'embed_dims {self.embed_dims} is not a multiple of num_heads {self.arch_settings["num_heads"]}'
            )
        self.img_size = to_2tuple(img_size)
        self.patch_size = to_2tuple(patch_size)
        self.space = vit_space(self, widths, depths, aliases, patch_sizes)

        if out_type not in self.OUT_TYPES:
            raise ValueError(f'out_type {out_type!r} is not one of {", ".join(self.OUT_TYPES)}')
        if out_type == 'cls_token' and not with_cls_token:
            raise ValueError(f"out_type 'cls_token' needs with_cls_token; without: {', '.join(self.OUT_TYPES[1:])}")
        self.out_type = out_type
        self.out_indices = [out_indices] if isinstance(out_indices, int) else list(out_indices)
        norm_cfg = dict(type='LN', eps=1e-6) | dict(norm_cfg or {})
        if norm_cfg['type'] != 'LN' or set(norm_cfg) > {'type', 'eps'}:
            raise ValueError(f"norm_cfg {norm_cfg} is not valid; only dict(type='LN', eps=...) is")
        if set(patch_cfg or ()) - {'bias'}:
            raise ValueError(f'patch_cfg {dict(patch_cfg)} may hold bias only: masks lie on a grid of whole patches')
        if layer_cfgs is not None and not isinstance(layer_cfgs, Mapping):
            raise TypeError('layer_cfgs has to be a dict: all blocks of a supernet are alike, as a subnet keeps any')
        if unknown := set(layer_cfgs or ()) - set(self.LAYER_OPTIONS):
            raise ValueError(f'layer_cfgs has {sorted(unknown)}; valid: {", ".join(self.LAYER_OPTIONS)}')
        rates = dict(drop_rate=drop_rate, drop_path_rate=drop_path_rate) | dict(layer_cfgs or {})
        if wrong := {name: rate for name, rate in rates.items() if not 0 <= rate < 1}:
            raise ValueError(f'{", ".join(f"{name} {rate}" for name, rate in wrong.items())} is not in [0, 1)')
        if frozen_stages > self.num_layers:
            raise ValueError(f'frozen_stages {frozen_stages} is more than the {self.num_layers} blocks')
        self.norm_eps = norm_cfg['eps']
        self.drop_path_rate = rates['drop_path_rate']
        self.drop_rate = drop_rate
        self.layer_cfgs = dict(layer_cfgs or {})
        self.frozen_stages = frozen_stages
        self.qkv_bias = qkv_bias
        self.layer_scale_init_value = layer_scale_init_value
        self.with_cp = with_cp

        self.in_channels = in_channels
        self.patch_bias = bool((patch_cfg or {}).get('bias', not pre_norm))
        self.patch_embed = ElasticPatchEmbed(
            in_channels,
            self.embed_dims,
            kernel_size=patch_size,
            stride=patch_size,
            bias=self.patch_bias,
            input_size=self.img_size,
        )
        self.patch_resolution = self.patch_embed.init_out_size
        num_patches = self.patch_resolution[0] * self.patch_resolution[1]
        self.with_cls_token, self.final_norm, self.with_pre_norm = with_cls_token, final_norm, pre_norm
        self.num_extra_tokens = int(with_cls_token)
        # A class token is the class feature by itself; so is the normed mean.
        self.neck = None if with_cls_token or out_type == 'avg_featmap' else dict(type='GlobalAveragePooling')
        self.cls_token = nn.Parameter(torch.zeros(1, 1, self.embed_dims)) if with_cls_token else None
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.embed_dims))
        self.pos_embed = nn.Parameter(torch.zeros(1, num_patches + self.num_extra_tokens, self.embed_dims))
        self.interpolate_mode = interpolate_mode
        self._register_load_state_dict_pre_hook(self._prepare_pos_embed)
        self.drop_after_pos = dropout(drop_rate)
        self.pre_norm = ElasticLayerNorm(self.embed_dims, self.norm_eps) if pre_norm else nn.Identity()

        self.layers = ModuleList(
            ElasticEncoderLayer(
                self.embed_dims,
                self.head_dim,
                self.hidden_dims,
                qkv_bias,
                self.norm_eps,
                layer_scale_init_value,
                **rates,
            )
            for _ in range(self.num_layers)
        )
        if final_norm:
            self.ln1 = ElasticLayerNorm(self.embed_dims, self.norm_eps)
        if out_type == 'avg_featmap':
            self.ln2 = ElasticLayerNorm(self.embed_dims, self.norm_eps)
        if frozen_stages > 0:
            self._freeze_stages()

    def init_weights(self) -> None:
        """Initialise the weights: position embedding, class and mask token, then by ``init_cfg``."""
        BaseBackbone.init_weights(self)
        if not (isinstance(self.init_cfg, dict) and self.init_cfg['type'] == 'Pretrained'):
            trunc_normal_(self.pos_embed, std=0.02)
            if self.with_cls_token:
                nn.init.normal_(self.cls_token, std=1e-6)

    def train(self, mode: bool = True) -> ElasticVisionTransformer:
        """As usual, but for what is frozen, which stays in evaluation mode."""
        super().train(mode)
        if mode and self.frozen_stages > 0:
            self._freeze_stages()
        return self

    def forward(self, x: Tensor, subnet: Subnet | None = None, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Outputs of the chosen blocks.

        Args:
            x: Images, ``(B, C, H, W)``.
            subnet: What to compute. Default: the whole network.
            mask: Patches replaced by the mask token, boolean ``(B, N)``. Default: none.

        Returns:
            One tensor for each of ``out_indices``, shaped as ``out_type`` says.

        Raises:
            ValueError: If the subnet is not in the space, the mask does not fit the grid, an index is beyond the blocks
                in use, or images are not whole patches of a size that is not the native one.
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
                outs[index] = self._format_output(self._last_norm(x) if index == subnet.depth - 1 else x, grid)
        return tuple(outs[index] for index in wanted)

    def extract_features(
        self, x: Tensor, subnet: Subnet | None = None, mask: Tensor | None = None, part: BatchPart | None = None
    ) -> Features:
        """Class and patch features after the final norm; as :meth:`forward`, ``part`` as of ``add_branch``."""
        subnet = subnet or self.space.largest
        x, _ = self._embed(x, subnet, mask)
        for block in self._blocks(subnet):
            x = run_block(block, x, part, with_cp=self.with_cp)
        return _features(self, self._last_norm(x))

    def _last_norm(self, x: Tensor) -> Tensor:
        return self.ln1(x) if self.final_norm else x

    @staticmethod
    def plain_features(network: VisionTransformer, x: Tensor) -> Features:
        """The same by an extracted ``network``, whose ``out_type`` becomes ``'raw'``."""
        network.out_type = 'raw'
        return _features(network, network(x)[-1])

    @staticmethod
    def subnet_of(network: VisionTransformer) -> Subnet:
        """The subnet that an extracted ``network`` is."""
        return Subnet(network.embed_dims, network.num_layers)

    def _embed(self, x: Tensor, subnet: Subnet, mask: Tensor | None) -> tuple[Tensor, tuple[int, int]]:
        """Tokens ``(B, N, width)`` that enter the first block, the class token first, and the grid of the patches."""
        subnet = self.space.parse(subnet)
        width = subnet.width
        if subnet.patch is not None:
            check_whole_patches(tuple(x.shape[-2:]), subnet.patch)
        x, grid = self.patch_embed(x, width, subnet.patch)
        if mask is not None:
            if mask.shape != x.shape[:2]:
                raise ValueError(f'mask of shape {tuple(mask.shape)} does not fit tokens {tuple(x.shape[:2])}')
            x = torch.where(mask.unsqueeze(-1), leading(self.mask_token, width).to(x.dtype), x)
        if self.with_cls_token:
            x = torch.cat([leading(self.cls_token, width).expand(len(x), -1, -1), x], dim=1)
        # In two steps, as a network of that patch size does: first to its own grid, then to that of the images.
        pos_embed, source = self._positions(subnet)
        pos_embed = resize_positions(pos_embed, source, grid, self.interpolate_mode, self.num_extra_tokens)
        return self.pre_norm(self.drop_after_pos(x + pos_embed)), grid

    def _positions(self, subnet: Subnet) -> tuple[Tensor, tuple[int, int]]:
        """Position embedding ``(1, L, width)`` of a subnet for images of ``img_size``, and its grid."""
        positions, native = leading(self.pos_embed, subnet.width), self.patch_resolution
        if subnet.patch is None:
            return positions, native
        extra, cells = positions.tensor_split([self.num_extra_tokens], dim=1)
        grid = self.mask_grid(self.img_size, subnet)
        return torch.cat([extra, resize_grid(cells, native, grid)], dim=1), grid

    def _blocks(self, subnet: Subnet) -> list[ElasticEncoderLayer]:
        return [self.layers[index] for index in kept_blocks(subnet.depth, self.num_layers)]

    def mask_grid(self, image_size: tuple[int, int], subnet: Subnet | None = None) -> tuple[int, int]:
        """Rows and columns of patches of a subnet in images of ``(H, W)`` pixels; partial native patches count."""
        patch = None if subnet is None else self.space.parse(subnet).patch
        if patch is None:
            return tuple(-(-size // native) for size, native in zip(image_size, self.patch_size))
        check_whole_patches(image_size, patch)
        return image_size[0] // patch, image_size[1] // patch

    def patch_size_of(self, subnet: Subnet) -> tuple[int, int]:
        """Height and width in pixels of a subnet's patches."""
        patch = self.space.parse(subnet).patch
        return self.patch_size if patch is None else (patch, patch)

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
        tokens = {'cls_token': self.cls_token, 'pos_embed': self._positions(subnet)[0]}
        state = {
            name: leading(token.detach(), subnet.width).clone() for name, token in tokens.items() if token is not None
        }
        modules = {name: self.get_submodule(name) for name in self._parts_besides_blocks()}
        modules |= {f'layers.{position}': block for position, block in enumerate(self._blocks(subnet))}
        for name, module in modules.items():
            state.update({f'{name}.{key}': value for key, value in sliced_state_dict(module, ratio).items()})
        if subnet.patch is not None:
            kernel = self.patch_embed.sliced_state(ratio, subnet.patch)
            state.update({f'patch_embed.{key}': value for key, value in kernel.items()})
        return vit_config(self, subnet), state

    def _parts_besides_blocks(self) -> list[str]:
        averaged = self.out_type == 'avg_featmap'
        there = dict(patch_embed=True, pre_norm=self.with_pre_norm, ln1=self.final_norm, ln2=averaged)
        return [name for name, is_there in there.items() if is_there]

    def cost(self, subnet: Subnet, image_size: int | tuple[int, int] | None = None) -> Cost:
        """Parameters and FLOPs of the extracted ``subnet`` on images of ``image_size`` pixels.

        The parameters are those of a network made for ``image_size``. Default: ``img_size``.
        """
        subnet = self.space.parse(subnet)
        rows, columns = self.mask_grid(to_2tuple(image_size or self.img_size), subnet)
        height, width = self.patch_size_of(subnet)
        return transformer_cost(
            subnet.width,
            subnet.depth,
            tokens=rows * columns,
            patch_inputs=self.in_channels * height * width,
            mlp_ratio=Fraction(self.hidden_dims, self.embed_dims),
            qkv_bias=self.qkv_bias,
            layer_scale=self.layer_scale_init_value > 0,
            extra_tokens=self.num_extra_tokens,
            stem_bias=self.patch_bias,
            norms=len(self._parts_besides_blocks()) - 1,
        )

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """As mmpretrain's, with the mask token beside the other embeddings (depth 0)."""
        if param_name == f'{prefix}mask_token':
            return 0, self.num_layers + 2
        return super().get_layer_depth(param_name, prefix)


def _features(network: VisionTransformer, tokens: Tensor) -> Features:
    """What ``network``, elastic or stock, makes of the tokens ``(B, 1 + N, D)`` or ``(B, N, D)`` of its last block."""
    patch = tokens[:, network.num_extra_tokens :]
    if hasattr(network, 'ln2'):  # of out_type='avg_featmap' only
        return Features(cls=network.ln2(patch.mean(dim=1)), patch=patch)
    return Features(cls=tokens[:, 0] if network.with_cls_token else patch.mean(dim=1), patch=patch)
