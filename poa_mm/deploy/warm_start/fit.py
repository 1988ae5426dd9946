"""Bringing the weights of a source to the network of a config: sizes, position embeddings, patches, LayerScale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from mmengine.utils import to_2tuple
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from poa_mm.checkpoint import CheckpointError, Resizing, check_state, compare, description_of, metadata_of
from poa_mm.checkpoint.resizing import EMBEDDING, position_index, resize_embedding, resize_patches
from poa_mm.models.backbones.elastic_backbone import ElasticBackbone

from .layouts import SWIN, VIT
from .source import OURS, Source, unshifted

INDEX = 'relative_position_index'


class Fitted(NamedTuple):
    """Weights that a backbone takes.

    Args:
        weights: Its whole state dict.
        changes: What was resized, added or folded, as sentences.
        resized: Whether the network is now made for other images, patches or windows than the source was.
    """

    weights: dict[str, Tensor]
    changes: list[str]
    resized: bool


def fit(source: Source, backbone: ElasticBackbone) -> Fitted:
    """Weights of a source as those of an elastic backbone.

    Args:
        source: The source.
        backbone: Of its family, whose full size is that of the source.

    Raises:
        CheckpointError: If it is another network; names what differs, in the source and in the config.
    """
    kind = source.family
    theirs, weights, changes = dict(source.config), dict(source.weights), []
    ours = backbone.extract(backbone.space.largest)[0]
    _check_sizes(source, theirs, ours)
    before = dict(theirs)
    if kind == VIT:
        _fit_patches(theirs, ours, weights, changes)
        _fit_options(theirs, backbone, weights, changes)
    if kind == SWIN:
        _check_shifts(source, theirs, backbone)
        _fit_positions(theirs, ours, weights, changes)
    weights = _fit_the_rest(source, theirs, ours, weights, changes)
    if 'mask_token' not in weights:
        weights['mask_token'] = torch.zeros_like(backbone.mask_token)
    expected = backbone.state_dict()
    for name in expected:
        if name.endswith(INDEX):  # follows from the window
            weights.setdefault(name, position_index(backbone.window_size))
    check_state(expected, weights, f'{source.path}: {source.layout}, under the names of mmpretrain,')
    weights = {name: value.detach().to(expected[name].dtype).clone() for name, value in weights.items()}
    keys = ('img_size', 'patch_size', 'window_size') if kind == VIT else ('patch_size', 'window_size')
    resized = any(to_2tuple(before[key]) != to_2tuple(ours[key]) for key in keys if key in before and key in ours)
    return Fitted(weights, changes, resized)


def _check_sizes(source: Source, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Compare what both networks are, with one line that a config can be mended by."""
    theirs, ours = sizes_of(theirs), sizes_of(ours)
    wrong = [
        f'{key} is {theirs.get(key)}, in the config {ours.get(key)}'
        for key in {**theirs, **ours}
        if theirs.get(key) != ours.get(key)
    ]
    if wrong:
        unseen = {'num_heads', 'num_groups'} & {key for key in ours if theirs.get(key) != ours[key]}
        taken = f'; the file does not say: {", ".join(source.assumed)}' if unseen and source.assumed else ''
        raise CheckpointError(f'{source.path} is not of the network of the config: {"; ".join(wrong)}{taken}')


def sizes_of(config: Mapping[str, Any]) -> dict[str, Any]:
    kind = config['type'].rpartition('.')[2]
    if kind == 'VisionTransformer':
        defaults = dict(with_cls_token=True, final_norm=True, pre_norm=False)
        options = {key: config.get(key, default) for key, default in defaults.items()}
        averaged = config.get('out_type') == 'avg_featmap'
        return {**config['arch'], 'in_channels': config['in_channels'], **options, 'mean patch normed': averaged}
    if kind == 'SwinTransformer':
        arch = {key: config['arch'][key] for key in ('embed_dims', 'depths', 'num_heads')}
        options = dict(patch_size=config['patch_size'], in_channels=config['in_channels'])
        return {**arch, **options, 'use_abs_pos_embed': config.get('use_abs_pos_embed', False)}
    if kind == 'ResNet':  # the stock class, of depths that it knows
        from mmpretrain.models.backbones import ResNet

        blocks = ResNet.arch_settings[config['depth']][1]
        width, outputs = config['base_channels'], config['base_channels'] * config['expansion']
    else:
        blocks, width = tuple(config['stage_blocks']), config['mid_channels']
        outputs = 4 * config.get('base_channels', 64)
    return dict(
        stage_blocks=tuple(blocks),
        mid_channels=width,
        outputs=outputs,
        stem_channels=config.get('stem_channels', 64),
        in_channels=config.get('in_channels', 3),
        num_groups=config['norm_cfg']['num_groups'],
        deep_stem=config.get('deep_stem', False),
        avg_down=config.get('avg_down', False),
    )


def _fit_patches(
    theirs: dict[str, Any], ours: Mapping[str, Any], weights: dict[str, Tensor], changes: list[str]
) -> None:
    """Resize patches and position embeddings of a ViT."""
    old, new = to_2tuple(theirs['patch_size']), to_2tuple(ours['patch_size'])
    grids = [
        tuple(size // patch for size, patch in zip(to_2tuple(config['img_size']), to_2tuple(config['patch_size'])))
        for config in (theirs, ours)
    ]
    if old != new:
        name = 'patch_embed.projection.weight'
        weights[name] = resize_patches(weights[name], new)
        changes.append(f'patches of {old[0]} x {old[1]} pixels resampled to {new[0]} x {new[1]}')
    if grids[0] != grids[1]:
        weights[EMBEDDING] = resize_embedding(
            weights[EMBEDDING], grids[0], grids[1], ours.get('interpolate_mode', 'bicubic')
        )
        texts = [f'{rows} x {columns}' for rows, columns in grids]
        changes.append(f'position embeddings of {texts[0]} patches resized to {texts[1]}')
    theirs.update(patch_size=ours['patch_size'], img_size=ours['img_size'])
    theirs['interpolate_mode'] = ours.get('interpolate_mode', 'bicubic')


def _fit_options(
    theirs: dict[str, Any], backbone: ElasticBackbone, weights: dict[str, Tensor], changes: list[str]
) -> None:
    """Biases of zero, LayerScale of one, and LayerScale that becomes part of the weights before it."""
    width = theirs['arch']['embed_dims']
    if backbone.qkv_bias and not theirs['qkv_bias']:
        changes.append('biases of queries, keys and values added, which are 0')
    scaled, scales = theirs['layer_scale_init_value'] > 0, backbone.layer_scale_init_value > 0
    if scales and not scaled:
        changes.append('LayerScale added, which is 1')
    if scaled and not scales:
        changes.append('LayerScale multiplied into the weights before it, as the config has none')
    for index in range(theirs['arch']['num_layers']):
        layer = f'layers.{index}'
        if backbone.qkv_bias and not theirs['qkv_bias']:
            weights.setdefault(f'{layer}.attn.qkv.bias', torch.zeros(3 * width))
        for gain, linear in ((f'{layer}.attn.gamma1', 'attn.proj'), (f'{layer}.ffn.gamma2', 'ffn.layers.1')):
            name, names = f'{gain}.weight', [f'{layer}.{linear}.{part}' for part in ('weight', 'bias')]
            if scales and not scaled:
                weights.setdefault(name, torch.ones(width))
            elif scaled and not scales and {name, *names} <= weights.keys():
                gain_of = weights.pop(name)
                weights[names[0]] = weights[names[0]] * gain_of[:, None]
                weights[names[1]] = weights[names[1]] * gain_of
    theirs['layer_scale_init_value'] = backbone.layer_scale_init_value
    theirs['qkv_bias'] = theirs['qkv_bias'] or backbone.qkv_bias


def _check_shifts(source: Source, theirs: Mapping[str, Any], backbone: ElasticBackbone) -> None:
    """Compare which stages of a Swin are never shifted, which the size of the images decides in other libraries."""
    if source.layout in OURS:
        return
    stages = unshifted(theirs)
    if stages != [stage for stage in backbone.unshifted_stages if backbone.depths[stage] > 1]:
        rows, columns = to_2tuple(theirs['img_size'])
        raise CheckpointError(
            f'{source.path}: {source.layout} does not shift the blocks of stages whose map is no larger than a window '
            f'of {theirs["window_size"]}; for images of {rows} x {columns} pixels, set '
            f'model.backbone.unshifted_stages={stages}, in the config {list(backbone.unshifted_stages)}'
        )


def _fit_positions(
    theirs: dict[str, Any], ours: Mapping[str, Any], weights: dict[str, Tensor], changes: list[str]
) -> None:
    """Resize the relative position biases of a Swin."""
    window = ours['window_size']
    if window != theirs['window_size']:
        weights.update(Resizing(window=window).apply(weights, None))
        changes.append(f'relative position biases of windows of {theirs["window_size"]} resized to {window}')
        theirs['window_size'] = window
    theirs['img_size'] = ours['img_size']  # which says nothing of its weights


def _fit_the_rest(
    source: Source, theirs: dict[str, Any], ours: Mapping[str, Any], weights: dict[str, Tensor], changes: list[str]
) -> dict[str, Tensor]:
    """Compare all that is left of the two networks.

    Raises:
        CheckpointError: If something differs; lists it.
    """
    description = description_of(metadata_of(theirs, {}), source.path)
    assert description is not None
    wrong, resizing = compare(_on_meta(ours), description)
    if wrong or resizing != Resizing():
        text = '; '.join(f'{item.name} is {item.described!r}, in the config {item.given!r}' for item in wrong[:6])
        raise CheckpointError(f'{source.path} is not of the network of the config: {text or resizing.describe()}')
    return weights


def _on_meta(config: Mapping[str, Any]) -> nn.Module:
    try:
        with torch.device('meta'):
            return MODELS.build(dict(config))
    except (RuntimeError, NotImplementedError):  # Swin reads its drop path rates from a tensor
        return MODELS.build(dict(config))
