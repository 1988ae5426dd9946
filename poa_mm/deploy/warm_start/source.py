"""The network that weights are from, as a stock network of mmpretrain."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.utils import to_2tuple
from torch import Tensor

from poa_mm.checkpoint import SUPERNET_KEY, CheckpointError, description_of, load_teacher, read_checkpoint
from poa_mm.deploy.extract import normalisation_of
from poa_mm.elastic import Subnet
from poa_mm.evaluation.backbone import FAMILIES
from poa_mm.models.backbones.elastic_resnet import resnet_config

from .files import Tensors, find_file, read_tensors
from .layouts import RESNET, SWIN, VIT, Found, blocks_in, recognise

FAMILY_NAMES = {VIT: 'ViT', SWIN: 'Swin', RESNET: 'ResNet'}
HEAD_DIM = 64  # channels of a head in every ViT of timm, DINO, DINOv2, MAE and DeiT
GROUPS = 32  # of the GroupNorms of timm's ResNets
OURS = EXTRACTED, SUPERNET = ('an extracted subnet', 'a checkpoint of POA')
EPS = {"transformers' ViTModel": 1e-12}  # of LayerNorms in ViTs, where it is not 1e-6


class Source(NamedTuple):
    """A network whose weights become those of a supernet.

    Args:
        path: Its file.
        layout: What messages call its layout.
        library: The package that it is of.
        family: Name of the class of elastic backbones that it fits.
        config: Of the stock network of mmpretrain that computes the same.
        weights: Of that network.
        raw: Under the library's own names.
        settings: That the library has saved beside the file.
        normalisation: ``mean``, ``std`` and ``to_rgb`` of its images; None if the file does not say.
        left_out: Names of what is none of the backbone's, and was left out.
        assumed: What the file does not say and was taken as usual, as sentences.
    """

    path: Path
    layout: str
    library: str
    family: str
    config: dict[str, Any]
    weights: dict[str, Tensor]
    raw: dict[str, Tensor]
    settings: Mapping[str, Any]
    normalisation: Mapping[str, Any] | None
    left_out: list[str]
    assumed: list[str]


class Asked(NamedTuple):
    """What the weights may not show.

    Args:
        image_size: Height and width in pixels of the config.
        family: Name of the class of its backbone.
        heads: Attention heads of a ViT. Default: None, what the file says, or heads of 64 channels.
        groups: Of the norms of a ResNet. Default: None, 32.
    """

    image_size: tuple[int, int]
    family: str
    heads: int | None = None
    groups: int | None = None


def read_source(path: str | os.PathLike, asked: Asked) -> Source:
    """Read weights of another library, an extracted subnet or a checkpoint of POA. Nothing in a file is executed.

    Args:
        path: The file, or a folder as a library saves it.
        asked: What the weights may not show.

    Raises:
        CheckpointError: If the file cannot be read, the layout is unknown, or a weight is; names it.
        ValueError: If heads or groups do not fit the weights.
    """
    path = find_file(path)
    content = read_checkpoint(path)
    _check_asked(asked)
    if SUPERNET_KEY in content:
        _check_asked(asked, SUPERNET)
        return _supernet(path, asked)
    tensors = read_tensors(path, content)
    if (description := description_of(tensors.meta, path)) is not None:
        _check_asked(asked, EXTRACTED)
        config = json.loads(tensors.meta['backbone'])
        family = FAMILIES[config['type']].__name__
        _check_family(path, EXTRACTED, family, asked)
        return Source(
            path=path,
            layout=EXTRACTED,
            library='mmpretrain',
            family=family,
            config=config,
            weights=tensors.weights,
            raw=tensors.weights,
            settings={},
            normalisation=description.normalisation,
            left_out=tensors.ignored,
            assumed=[],
        )
    found = recognise(tensors.weights, path)
    _check_family(path, found.layout.name, found.layout.family, asked)
    config, weights, assumed = _CONVERT[found.layout.family](found, tensors, asked)
    return Source(
        path=path,
        layout=found.layout.name,
        library=found.layout.library,
        family=found.layout.family,
        config=config,
        weights=weights,
        raw=found.raw,
        settings=tensors.settings,
        normalisation=_normalisation(tensors),
        left_out=[*found.left_out, *tensors.ignored],
        assumed=assumed,
    )


def _check_asked(asked: Asked, says: str | None = None) -> None:
    """Heads are a ViT's, groups a ResNet's, and some files say them."""
    for name, family in (('heads', VIT), ('groups', RESNET)):
        if getattr(asked, name) is not None and (says or asked.family != family):
            what = f'of {says}, which says them' if says else f'of {asked.family}: they are a choice of {family}'
            raise ValueError(f'{name} {getattr(asked, name)} (--{name}) cannot be set {what}')


def _check_family(path: Path, layout: str, family: str, asked: Asked) -> None:
    if family != asked.family:
        kind = FAMILY_NAMES[family]
        raise CheckpointError(f'{path}: {layout} is a {kind}, the backbone of the config is {asked.family}')


def _supernet(path: Path, asked: Asked) -> Source:
    """The largest network of a checkpoint of POA."""
    backbone, description = load_teacher(path)
    _check_family(path, SUPERNET, type(backbone).__name__, asked)
    config, weights = backbone.extract(backbone.space.largest)
    weights['mask_token'] = backbone.mask_token.detach().clone()
    normalisation = normalisation_of(description)
    return Source(
        path=path,
        layout=SUPERNET,
        library='mmpretrain',
        family=type(backbone).__name__,
        config=config,
        weights=weights,
        raw=weights,
        settings={},
        normalisation=normalisation if normalisation['mean'] is not None else None,
        left_out=[],
        assumed=[],
    )


def _normalisation(tensors: Tensors) -> dict[str, Any] | None:
    """How images are normalised, if the library says so beside the file: of 0 to 1 there, of 0 to 255 here."""
    says = tensors.settings.get('pretrained_cfg') or tensors.settings
    mean, std = says.get('mean'), says.get('std')
    if mean is None:
        mean, std = tensors.preparation.get('image_mean'), tensors.preparation.get('image_std')
    if not isinstance(mean, (list, tuple)) or not isinstance(std, (list, tuple)):
        return None
    return dict(mean=[255 * value for value in mean], std=[255 * value for value in std], to_rgb=True)


# --- ViT -------------------------------------------------------------------------------------
def _vit(found: Found, tensors: Tensors, asked: Asked) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    what, settings = tensors.path, tensors.settings
    weights = _joined(dict(found.weights), what)
    width, in_channels, *patch = _shape(weights, 'patch_embed.projection.weight', 4, what)
    hidden = _shape(weights, 'layers.0.ffn.layers.0.0.weight', 2, what)[0]
    if _shape(weights, 'layers.0.ffn.layers.1.weight', 2, what)[1] != hidden:
        raise CheckpointError(f'{what}: blocks.0.mlp is of a SwiGLU MLP, which elastic backbones do not have')
    if (act := settings.get('hidden_act', 'gelu')) != 'gelu':
        raise CheckpointError(f'{what.with_name("config.json")}: hidden_act is {act!r}, elastic backbones have gelu')
    assumed: list[str] = []
    heads = settings.get('num_attention_heads') or (settings.get('model_args') or {}).get('num_heads')
    if heads is not None and asked.heads not in (None, heads):
        raise ValueError(f'{what.with_name("config.json")}: it has {heads} heads, not {asked.heads} (--heads)')
    heads = heads if asked.heads is None else asked.heads
    if heads is None:
        if width % HEAD_DIM:
            raise ValueError(f'{what} does not say how many heads {width} channels have (--heads)')
        heads = width // HEAD_DIM
        assumed.append(f'{heads} heads of {HEAD_DIM} channels (--heads says otherwise)')
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise ValueError(f'{what}: {heads} heads do not divide {width} channels')
    eps = settings.get('layer_norm_eps')
    if eps is None:
        eps = EPS.get(found.layout.name, 1e-6)
        assumed.append(f'LayerNorms of eps {eps:g}')
    with_cls_token = 'cls_token' in weights
    grid = _grid(weights, patch, with_cls_token, asked, what)
    final_norm, averaged = 'ln1.weight' in weights, 'ln2.weight' in weights
    config = dict(
        type='VisionTransformer',
        arch=dict(
            embed_dims=width,
            num_layers=blocks_in(weights, r'layers\.(\d+)\.'),
            num_heads=heads,
            feedforward_channels=hidden,
        ),
        img_size=tuple(rows * pixels for rows, pixels in zip(grid, patch)),
        patch_size=tuple(patch),
        in_channels=in_channels,
        qkv_bias='layers.0.attn.qkv.bias' in weights,
        norm_cfg=dict(type='LN', eps=eps),
        layer_scale_init_value=1e-5 if 'layers.0.attn.gamma1.weight' in weights else 0.0,
        with_cls_token=with_cls_token,
        final_norm=final_norm,
        out_type='avg_featmap' if averaged else 'cls_token' if with_cls_token else 'featmap',
        pre_norm='pre_norm.weight' in weights,
    )
    if config['pre_norm'] == (bias := 'patch_embed.projection.bias' in weights):  # it has the one or the other
        config['patch_cfg'] = dict(bias=bias)
    return config, weights, assumed


def _joined(weights: dict[str, Tensor], what: Path) -> dict[str, Tensor]:
    """Queries, keys and values as one matrix, and tokens of three dimensions."""
    if 'mask_token' in weights and weights['mask_token'].dim() == 2:
        weights['mask_token'] = weights['mask_token'][:, None]
    for name in [name for name in weights if '.attn.query.' in name]:
        names = [name.replace('.query.', f'.{part}.') for part in ('query', 'key', 'value')]
        parts = [weights.pop(part, None) for part in names]
        if parts[1] is None and name.endswith('bias') and name.replace('query.bias', 'qkv.weight') in weights:
            parts[1] = torch.zeros_like(parts[0])  # BEiT's networks have no bias of keys
        if missing := [part for part, value in zip(names, parts) if value is None]:
            raise CheckpointError(f'{what}: missing {", ".join(missing)} (as mmpretrain would call them)')
        weights[name.replace('.query.', '.qkv.')] = torch.cat(parts)
    if lost := [name for name in weights if '.attn.key.' in name or '.attn.value.' in name]:
        raise CheckpointError(f'{what}: {lost[0]} without a query')
    return weights


def _grid(
    weights: dict[str, Tensor], patch: list[int], with_cls_token: bool, asked: Asked, what: Path
) -> tuple[int, int]:
    """Rows and columns of the position embeddings, which get one of zeros for a class token that has none."""
    _, length, width = _shape(weights, 'pos_embed', 3, what)
    own = tuple(size // pixels for size, pixels in zip(asked.image_size, patch))
    for extra in (1, 0) if with_cls_token else (0,):
        tokens = length - extra
        side = math.isqrt(tokens)
        grid = own if own[0] * own[1] == tokens else (side, side)
        if grid[0] * grid[1] == tokens and tokens:
            if extra < with_cls_token:
                nothing = weights['pos_embed'].new_zeros(1, 1, width)
                weights['pos_embed'] = torch.cat([nothing, weights['pos_embed']], dim=1)
            return grid
    raise CheckpointError(f'{what}: pos_embed of {length} tokens is of no square, nor of {own[0]} x {own[1]} patches')


# --- Swin ------------------------------------------------------------------------------------
def _swin(found: Found, tensors: Tensors, asked: Asked) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    what, weights = tensors.path, dict(found.weights)
    if found.layout.library == 'timm':
        _move_merging(weights, what)
    width, in_channels, patch, _ = _shape(weights, 'patch_embed.projection.weight', 4, what)
    stages = blocks_in(weights, r'stages\.(\d+)\.')
    depths = [blocks_in(weights, rf'stages\.{stage}\.blocks\.(\d+)\.') for stage in range(stages)]
    tables = [
        _shape(weights, f'stages.{stage}.blocks.0.attn.w_msa.relative_position_bias_table', 2, what)
        for stage in range(stages)
    ]
    windows = [(math.isqrt(table[0]) + 1) // 2 for table in tables]
    if len(set(windows)) > 1 or (2 * windows[0] - 1) ** 2 != tables[0][0]:
        raise CheckpointError(
            f'{what}: the stages have windows of {", ".join(map(str, windows))}; elastic backbones have one size. '
            'timm shrinks windows to smaller maps: build it with always_partition=True, or for larger images'
        )
    window = windows[0]
    config: dict[str, Any] = dict(
        type='SwinTransformer',
        arch=dict(embed_dims=width, depths=depths, num_heads=[table[1] for table in tables]),
        img_size=asked.image_size,
        patch_size=patch,
        in_channels=in_channels,
        window_size=window,
        pad_small_map=True,
    )
    if 'absolute_pos_embed' in weights:
        config['use_abs_pos_embed'] = True
    # These libraries do not shift blocks of a map that is no larger than a window; with pad_small_map, mmpretrain does.
    whole = unshifted(config)
    if whole:
        config['stage_cfgs'] = [
            dict(block_cfgs=[dict(shift=False) for _ in range(depth)]) if stage in whole else {}
            for stage, depth in enumerate(depths)
        ]
    return config, weights, []


def unshifted(config: Mapping[str, Any]) -> list[int]:
    """Stages of a Swin whose maps are no larger than a window, for the images it is made for."""
    grid = [-(-size // config['patch_size']) for size in to_2tuple(config['img_size'])]
    found = []
    for stage, depth in enumerate(config['arch']['depths']):
        if min(grid) <= config['window_size'] and depth > 1:
            found.append(stage)
        grid = [-(-size // 2) for size in grid]
    return found


def _move_merging(weights: dict[str, Tensor], what: Path) -> None:
    """Timm's merging lies before a stage, older ones' after the one before; four tokens one after another."""
    names = [name for name in weights if name.startswith('downsample.')]
    first = min((int(name.split('.')[1]) for name in names), default=0)
    for name in names:
        _, stage, rest = name.split('.', 2)
        value = weights.pop(name)
        # Their order is upper left, lower left, upper right, lower right; mmpretrain's is channel by channel.
        value = value.unflatten(-1, (2, 2, -1)).movedim((-3, -2), (-1, -2)).flatten(-3)
        weights[f'stages.{int(stage) - (first == 1)}.downsample.{rest}'] = value


# --- ResNet ----------------------------------------------------------------------------------
def _resnet(found: Found, tensors: Tensors, asked: Asked) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    what, weights = tensors.path, found.weights
    if 'layer1.0.conv3.weight' not in weights:
        raise CheckpointError(
            f'{what}: blocks of two convolutions (ResNet-18 and -34); elastic ResNets have bottlenecks'
        )
    deep = 'conv1.weight' not in weights
    stem = _shape(weights, 'stem.6.weight' if deep else 'conv1.weight', 4, what)
    first = _shape(weights, 'stem.0.weight' if deep else 'conv1.weight', 4, what)
    mid, _, *_ = _shape(weights, 'layer1.0.conv1.weight', 4, what)
    outputs, _, *_ = _shape(weights, 'layer1.0.conv3.weight', 4, what)
    if (inputs := _shape(weights, 'layer1.0.conv2.weight', 4, what)[1]) != mid:
        raise CheckpointError(f'{what}: layer1.0.conv2 is of a grouped convolution ({inputs} of {mid} inputs)')
    if stem[2:] != ((3, 3) if deep else (7, 7)):
        raise CheckpointError(f'{what}: the stem has a kernel of {stem[2]} x {stem[3]}, that of elastic ResNets 7 x 7')
    assumed = []
    groups = asked.groups
    if groups is None:
        groups = GROUPS
        assumed.append(f'GroupNorms of {groups} groups (--groups says otherwise)')
    if groups < 1 or mid % groups or outputs % groups or stem[0] % groups:
        raise ValueError(f'{what}: {groups} groups do not divide {mid}, {outputs} and {stem[0]} channels (--groups)')
    config = resnet_config(
        Subnet(mid, tuple(blocks_in(weights, rf'layer{stage}\.(\d+)\.') for stage in (1, 2, 3, 4))),
        in_channels=first[1],
        stem_channels=stem[0],
        base_channels=outputs // 4,
        strides=(1, 2, 2, 2),
        num_groups=groups,
        deep_stem=deep,
        avg_down='layer2.0.downsample.2.weight' in weights,  # pooling, convolution, norm
    )
    return config, weights, assumed


def _shape(weights: Mapping[str, Tensor], name: str, dims: int, what: object) -> tuple[int, ...]:
    """The shape of a weight that has to be there."""
    if name not in weights:
        raise CheckpointError(f'{what}: missing {name} (as mmpretrain calls it)')
    if weights[name].dim() != dims:
        raise CheckpointError(f'{what}: {name} (as mmpretrain calls it) has the shape {tuple(weights[name].shape)}')
    return tuple(weights[name].shape)


_CONVERT: Mapping[str, Callable] = {VIT: _vit, SWIN: _swin, RESNET: _resnet}
