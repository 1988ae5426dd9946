"""Folders that ``transformers.AutoModel.from_pretrained`` loads.

What the layouts of transformers can hold:

- ``Dinov2Model``: a ViT of any width, depth and number of heads, with or without LayerScale, made for square images.
- ``SwinModel``: a Swin whose blocks are shifted in turn, and whose maps are all larger than a window: it neither pads a
  smaller map nor shifts one of the same size.

transformers has no ResNet with GroupNorm.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .network import RESNET, SWIN, VIT, ExportError, ExportNetwork
from .options import ExportOptions
from .to_timm import check_alternating, check_eps, mlp_ratio, options_of_preparation, renamed, stage_grids, token_order

MODULES = ('transformers',)
TORCH = '2.2'
_BLOCK, _SWIN_BLOCK = r'layers\.(\d+)\.', r'stages\.(\d+)\.blocks\.(\d+)\.'
RULES = {
    VIT: {
        r'cls_token': r'embeddings.cls_token',
        r'pos_embed': r'embeddings.position_embeddings',
        r'patch_embed\.projection\.(\w+)': r'embeddings.patch_embeddings.projection.\1',
        rf'{_BLOCK}ln([12])\.(\w+)': r'encoder.layer.\1.norm\2.\3',
        rf'{_BLOCK}attn\.qkv\.(\w+)': r'encoder.layer.\1.attention.attention.qkv.\2',
        rf'{_BLOCK}attn\.proj\.(\w+)': r'encoder.layer.\1.attention.output.dense.\2',
        rf'{_BLOCK}attn\.gamma1\.weight': r'encoder.layer.\1.layer_scale1.lambda1',
        rf'{_BLOCK}ffn\.gamma2\.weight': r'encoder.layer.\1.layer_scale2.lambda1',
        rf'{_BLOCK}ffn\.layers\.0\.0\.(\w+)': r'encoder.layer.\1.mlp.fc1.\2',
        rf'{_BLOCK}ffn\.layers\.1\.(\w+)': r'encoder.layer.\1.mlp.fc2.\2',
        r'ln1\.(\w+)': r'layernorm.\1',
    },
    SWIN: {
        r'patch_embed\.projection\.(\w+)': r'embeddings.patch_embeddings.projection.\1',
        r'patch_embed\.norm\.(\w+)': r'embeddings.norm.\1',
        rf'{_SWIN_BLOCK}norm1\.(\w+)': r'encoder.layers.\1.blocks.\2.layernorm_before.\3',
        rf'{_SWIN_BLOCK}norm2\.(\w+)': r'encoder.layers.\1.blocks.\2.layernorm_after.\3',
        rf'{_SWIN_BLOCK}attn\.w_msa\.(relative_position_bias_table)': (
            r'encoder.layers.\1.blocks.\2.attention.self.\3'
        ),
        rf'{_SWIN_BLOCK}attn\.w_msa\.qkv\.(\w+)': r'encoder.layers.\1.blocks.\2.attention.self.qkv.\3',
        rf'{_SWIN_BLOCK}attn\.w_msa\.proj\.(\w+)': r'encoder.layers.\1.blocks.\2.attention.output.dense.\3',
        rf'{_SWIN_BLOCK}ffn\.layers\.0\.0\.(\w+)': r'encoder.layers.\1.blocks.\2.intermediate.dense.\3',
        rf'{_SWIN_BLOCK}ffn\.layers\.1\.(\w+)': r'encoder.layers.\1.blocks.\2.output.dense.\3',
        r'stages\.(\d+)\.downsample\.(norm|reduction)\.(\w+)': r'encoder.layers.\1.downsample.\2.\3',
        r'norm3\.(\w+)': r'layernorm.\1',
    },
}


def check(network: ExportNetwork, options: ExportOptions) -> None:
    """Check that a layout of transformers can hold the network.

    Raises:
        ExportError: If it cannot; says why and what would work.
    """
    if network.kind == RESNET:
        raise ExportError(
            f'huggingface cannot hold subnet {network.subnet}: transformers has no ResNet with GroupNorm; '
            'what works: timm, onnx, torch'
        )
    rows, columns = network.image_size
    if rows != columns or network.stride[0] != network.stride[1]:
        raise _cannot(network, f'its images and patches are square, those of the subnet {rows}x{columns} pixels')
    if network.kind == SWIN:
        _check_swin(network)


def _check_swin(network: ExportNetwork) -> None:
    check_alternating(network, 'huggingface')
    window, depths = network.config.get('window_size', 7), network.config['arch']['depths']
    for stage, grid in enumerate(stage_grids(network)):
        if min(grid) < window or (min(grid) == window and depths[stage] > 1):
            raise _cannot(
                network,
                f'it does not shift, nor pad, a map that is not larger than a window; that of stage {stage + 1} has '
                f'{min(grid)} rows, a window {window}',
            )


def _cannot(network: ExportNetwork, why: str) -> ExportError:
    return ExportError(
        f"huggingface's {network.kind} cannot hold subnet {network.subnet}: {why}; what works: timm, onnx, torch"
    )


def build(network: ExportNetwork) -> nn.Module:
    """``Dinov2Model`` or ``SwinModel`` with the network's weights, in evaluation mode."""
    from transformers import Dinov2Config, Dinov2Model, SwinConfig, SwinModel

    config, arch = network.config, network.config['arch']
    sizes = dict(image_size=network.image_size[0], patch_size=network.stride[0], num_channels=network.in_channels)
    if network.kind == VIT:
        model = Dinov2Model(
            Dinov2Config(
                hidden_size=arch['embed_dims'],
                num_hidden_layers=arch['num_layers'],
                num_attention_heads=arch['num_heads'],
                mlp_ratio=mlp_ratio(arch['embed_dims'], arch['feedforward_channels']),
                qkv_bias=config.get('qkv_bias', True),
                layer_norm_eps=config.get('norm_cfg', {}).get('eps', 1e-6),
                use_mask_token=False,
                **sizes,
            )
        )
    else:
        sizes['patch_size'] = config['patch_size']
        model = SwinModel(
            SwinConfig(
                embed_dim=arch['embed_dims'],
                depths=list(arch['depths']),
                num_heads=list(arch['num_heads']),
                window_size=config.get('window_size', 7),
                layer_norm_eps=1e-5,
                drop_path_rate=0.0,
                **sizes,
            )
        )
    model.load_state_dict(state_dict(network, model))  # strict
    check_eps(network, model)
    return model.eval()


def state_dict(network: ExportNetwork, model: nn.Module) -> dict[str, Tensor]:
    """The weights in the layout of ``model``, which adds what no weight of ours stands for."""
    state = {}
    for name, value in renamed(network, RULES[network.kind]).items():
        if '.qkv.' in name:
            for part, chunk in zip(('query', 'key', 'value'), value.chunk(3)):
                state[name.replace('.qkv.', f'.{part}.')] = chunk
        else:
            state[name] = token_order(value) if '.downsample.' in name else value
    for name, value in model.state_dict().items():
        if name.endswith('.relative_position_index'):
            state[name] = value
        elif name.endswith('.lambda1') and name not in state:  # a network without LayerScale
            state[name] = torch.ones_like(value)
    return state


def write(network: ExportNetwork, folder: Path, options: ExportOptions) -> dict[str, Any]:
    """Write ``poa_<subnet>_huggingface/``.

    Returns:
        Of the manifest: ``file``, ``load`` (the call that loads it), and ``processor``, whether there is one.
    """
    target = folder / f'{network.name}_huggingface'
    build(network).save_pretrained(target)
    with_processor = network.in_channels == 3 and not network.has_bands
    if with_processor:
        processor(network).save_pretrained(target)
    return dict(
        file=target.name,
        load=f"transformers.AutoModel.from_pretrained('{target.name}')",
        processor=f"transformers.AutoImageProcessor.from_pretrained('{target.name}')" if with_processor else None,
    )


def processor(network: ExportNetwork) -> Any:
    """The ``BitImageProcessor`` that prepares colour images as the network's evaluation does."""
    from transformers import BitImageProcessor

    rows, columns = network.image_size
    edge = options_of_preparation(network)['edge']
    return BitImageProcessor(
        size=dict(height=rows, width=columns) if edge is None else dict(shortest_edge=edge),
        do_center_crop=edge is not None,
        crop_size=dict(height=rows, width=columns),
        resample=3,  # bicubic
        image_mean=network.mean,
        image_std=network.std,
    )
