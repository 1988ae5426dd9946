"""Folders that ``timm.create_model`` loads: ``model.safetensors`` and ``config.json``.

What timm's layouts can hold:

- ViT: any width, depth and number of heads (``embed_dim``, ``depth``, ``num_heads``), LayerScale (``init_values``), any
  patch and image size. The ``eps`` of its norms is 1e-6.
- Swin: blocks that are shifted in turn, as in a network of that depth that was never cut; shifted windows that tile
  the map without padding.
- ResNet: any depth and mid channels (``layers``, ``base_width``); 64 channels in the stem, strides 1, 2, 2, 2, and
  norms of 32 groups (or one).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .network import RESNET, SWIN, VIT, ExportError, ExportNetwork
from .options import ExportOptions

MODULES = ('timm', 'safetensors')
TORCH = '2.1'
BASES = {VIT: 'vit_small_patch16_224', SWIN: 'swin_tiny_patch4_window7_224', RESNET: 'resnet50_gn'}
RULES: dict[str, dict[str, str]] = {  # names of our weights, as patterns, and of timm's
    VIT: {
        r'(cls_token|pos_embed)': r'\1',
        r'patch_embed\.projection\.(\w+)': r'patch_embed.proj.\1',
        r'layers\.(\d+)\.ln([12])\.(\w+)': r'blocks.\1.norm\2.\3',
        r'layers\.(\d+)\.attn\.(qkv|proj)\.(\w+)': r'blocks.\1.attn.\2.\3',
        r'layers\.(\d+)\.attn\.gamma1\.weight': r'blocks.\1.ls1.gamma',
        r'layers\.(\d+)\.ffn\.gamma2\.weight': r'blocks.\1.ls2.gamma',
        r'layers\.(\d+)\.ffn\.layers\.0\.0\.(\w+)': r'blocks.\1.mlp.fc1.\2',
        r'layers\.(\d+)\.ffn\.layers\.1\.(\w+)': r'blocks.\1.mlp.fc2.\2',
        r'ln1\.(\w+)': r'norm.\1',
    },
    SWIN: {
        r'patch_embed\.projection\.(\w+)': r'patch_embed.proj.\1',
        r'patch_embed\.norm\.(\w+)': r'patch_embed.norm.\1',
        r'stages\.(\d+)\.blocks\.(\d+)\.norm([12])\.(\w+)': r'layers.\1.blocks.\2.norm\3.\4',
        r'stages\.(\d+)\.blocks\.(\d+)\.attn\.w_msa\.(relative_position_bias_table)': r'layers.\1.blocks.\2.attn.\3',
        r'stages\.(\d+)\.blocks\.(\d+)\.attn\.w_msa\.(qkv|proj)\.(\w+)': r'layers.\1.blocks.\2.attn.\3.\4',
        r'stages\.(\d+)\.blocks\.(\d+)\.ffn\.layers\.0\.0\.(\w+)': r'layers.\1.blocks.\2.mlp.fc1.\3',
        r'stages\.(\d+)\.blocks\.(\d+)\.ffn\.layers\.1\.(\w+)': r'layers.\1.blocks.\2.mlp.fc2.\3',
        # timm merges before a stage, mmpretrain after the one before: the number is raised below.
        r'stages\.(\d+)\.downsample\.(norm|reduction)\.(\w+)': r'layers.\1.downsample.\2.\3',
        r'norm3\.(\w+)': r'norm.\1',
    },
    RESNET: {
        r'conv1\.weight': r'conv1.weight',
        r'gn1\.(\w+)': r'bn1.\1',
        r'layer(\d)\.(\d+)\.conv([123])\.weight': r'layer\1.\2.conv\3.weight',
        r'layer(\d)\.(\d+)\.gn([123])\.(\w+)': r'layer\1.\2.bn\3.\4',
        r'layer(\d)\.(\d+)\.downsample\.([01])\.(\w+)': r'layer\1.\2.downsample.\3.\4',
    },
}
UNUSED = r'norm[012]\.\w+|.*\.relative_position_index'  # Swin: of maps that are not given, and what follows from sizes


def check(network: ExportNetwork, options: ExportOptions) -> None:
    """Check that timm's layout can hold the network.

    Raises:
        ExportError: If it cannot; says why and what would work.
    """
    model_args(network)


def model_args(network: ExportNetwork) -> dict[str, Any]:
    """Arguments of ``timm.create_model`` beside the name of ``BASES``.

    Raises:
        ExportError: As :func:`check`.
    """
    make = {VIT: _vit_args, SWIN: _swin_args, RESNET: _resnet_args}[network.kind]
    return dict(num_classes=0, in_chans=network.in_channels, **make(network))


def _vit_args(network: ExportNetwork) -> dict[str, Any]:
    config, arch = network.config, network.config['arch']
    if (eps := config.get('norm_cfg', {}).get('eps', 1e-6)) != 1e-6:
        raise _cannot(network, f'its norms have eps 1e-6, those of the subnet {eps:g}', 'huggingface, onnx, torch')
    scale = config.get('layer_scale_init_value', 0)
    return dict(
        img_size=list(network.image_size),
        patch_size=list(network.stride),
        embed_dim=arch['embed_dims'],
        depth=arch['num_layers'],
        num_heads=arch['num_heads'],
        mlp_ratio=mlp_ratio(arch['embed_dims'], arch['feedforward_channels']),
        qkv_bias=config.get('qkv_bias', True),
        **(dict(init_values=scale) if scale > 0 else {}),
    )


def _swin_args(network: ExportNetwork) -> dict[str, Any]:
    config, arch = network.config, network.config['arch']
    check_alternating(network, 'timm')
    window = config.get('window_size', 7)
    for stage, grid in enumerate(stage_grids(network)):
        if arch['depths'][stage] > 1 and any(size % window for size in grid):
            raise _cannot(
                network,
                f'maps of stage {stage + 1} ({grid[0]}x{grid[1]}) do not divide into windows of {window}, and it pads '
                'them on another side',
                'onnx, torch',
            )
    return dict(
        img_size=list(network.image_size),
        patch_size=config['patch_size'],
        embed_dim=arch['embed_dims'],
        depths=list(arch['depths']),
        num_heads=list(arch['num_heads']),
        window_size=window,
        always_partition=True,  # a map of one window is shifted, too
    )


def _resnet_args(network: ExportNetwork) -> dict[str, Any]:
    config = network.config
    width, groups = network.subnet.width, config['norm_cfg']['num_groups']
    outputs = config.get('base_channels', 64) * config.get('expansion', 4)
    norms = {32: 'groupnorm', 1: 'groupnorm1'}
    wrong = []
    if config.get('stem_channels', 64) != 64:
        wrong.append(f'its stem has 64 channels, that of the subnet {config["stem_channels"]}')
    if tuple(config.get('strides', (1, 2, 2, 2))) != (1, 2, 2, 2):
        wrong.append(f'its strides are 1, 2, 2, 2, those of the subnet {tuple(config["strides"])}')
    if groups not in norms:
        wrong.append(f'its norms have 32 groups, those of the subnet {groups}')
    channels, base_width = [outputs // 4 * 2**stage for stage in range(4)], 256 * width / outputs
    mid_channels = [math.floor(planes * (base_width / 64)) for planes in channels]  # as timm computes them
    if outputs % 4 or mid_channels != [width * 2**stage for stage in range(4)]:
        wrong.append(f'it cannot express {width} mid channels of {outputs}')
    if wrong:
        raise _cannot(network, '; '.join(wrong), 'onnx, torch')
    return dict(
        layers=list(network.subnet.depth),
        channels=channels,
        base_width=base_width,
        norm_layer=norms[groups],
    )


def mlp_ratio(width: int, hidden: int) -> float:
    """The float that ``int(width * ratio)`` makes ``hidden`` of."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def check_alternating(network: ExportNetwork, format: str) -> None:
    """Check that every other block of a Swin is shifted, the first is not.

    Raises:
        ExportError: If not.
    """
    stages = network.config.get('stage_cfgs') or ()
    for number, stage in enumerate(stages, 1):
        shifts = [block['shift'] for block in stage.get('block_cfgs', ())]
        if shifts != [position % 2 == 1 for position in range(len(shifts))]:
            kept = ''.join('s' if shift else '-' for shift in shifts)
            raise _cannot(
                network,
                f'its blocks are shifted in turn, those that the subnet keeps in stage {number} are not ({kept}, '
                's for shifted)',
                'onnx, torch, or a subnet of the full depth',
                format,
            )


def stage_grids(network: ExportNetwork) -> list[tuple[int, int]]:
    """Rows and columns of the map of each stage of a Swin, for images of the pre-training's size."""
    grids, grid = [], tuple(-(-size // network.config['patch_size']) for size in network.image_size)
    for _ in network.config['arch']['depths']:
        grids.append(grid)
        grid = tuple(-(-size // 2) for size in grid)
    return grids


def _cannot(network: ExportNetwork, why: str, instead: str, format: str = 'timm') -> ExportError:
    return ExportError(f"{format}'s {network.kind} cannot hold subnet {network.subnet}: {why}; what works: {instead}")


def renamed(network: ExportNetwork, rules: Mapping[str, str]) -> dict[str, Tensor]:
    """Weights under other names, by patterns of ours.

    Raises:
        ExportError: If a weight has no rule, so that none is lost unseen.
    """
    state = {}
    for name, value in network.state.items():
        if re.fullmatch(UNUSED, name):
            continue
        new = next((match.expand(to) for rule, to in rules.items() if (match := re.fullmatch(rule, name))), None)
        if new is None or new in state:
            raise ExportError(f'subnet {network.subnet}: the exporters do not know the weight {name}')
        state[new] = value
    return state


def token_order(merging: Tensor) -> Tensor:
    """Weights ``(.., 4 * C)`` of a merging of four tokens, from channel by channel to token by token.

    mmpretrain's order is (upper left, upper right, lower left, lower right) of each channel; that of the others is all
    channels of upper left, lower left, upper right, lower right.
    """
    return merging.unflatten(-1, (-1, 2, 2)).movedim((-1, -2), (-3, -2)).flatten(-3)


def state_dict(network: ExportNetwork) -> dict[str, Tensor]:
    """The weights in timm's layout."""
    state = renamed(network, RULES[network.kind])
    if network.kind != SWIN:
        return state
    merging = {name: value for name, value in state.items() if '.downsample.' in name}
    state = {name: value for name, value in state.items() if name not in merging}
    for name, value in merging.items():
        stage = int(name.split('.')[1])
        state[name.replace(f'layers.{stage}.', f'layers.{stage + 1}.')] = token_order(value)
    return state


def check_eps(network: ExportNetwork, model: nn.Module) -> None:
    """Check that norms have the same ``eps``, which changes too little to be seen in a comparison of features.

    Raises:
        ExportError: If not; names the values.
    """
    ours, theirs = (
        {norm.eps for norm in found.modules() if isinstance(norm, (nn.LayerNorm, nn.GroupNorm))}
        for found in (network.build(), model)
    )
    if ours != theirs:
        raise ExportError(
            f'{type(model).__name__} of {type(model).__module__} has norms of eps {sorted(theirs)}, subnet '
            f'{network.subnet} of {sorted(ours)}'
        )


def write(network: ExportNetwork, folder: Path, options: ExportOptions) -> dict[str, Any]:
    """Write ``poa_<subnet>_timm/``.

    Returns:
        Of the manifest: ``file`` and ``load``, the call that loads it.
    """
    import timm
    from safetensors.torch import save_file

    base, args = BASES[network.kind], model_args(network)
    model = timm.create_model(base, **args).eval()
    model.load_state_dict(state_dict(network))  # strict
    check_eps(network, model)
    target = folder / f'{network.name}_timm'
    target.mkdir()
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, target / 'model.safetensors', metadata={'format': 'pt'})
    config = dict(
        architecture=base,
        num_classes=0,
        num_features=model.num_features,
        model_args={key: value for key, value in args.items() if key != 'num_classes'},
        pretrained_cfg=_pretrained_cfg(network, model),
    )
    (target / 'config.json').write_text(json.dumps(config, indent=2) + '\n', encoding='utf-8')
    call = ', '.join([repr(base), *(f'{key}={value!r}' for key, value in args.items())])
    return dict(file=target.name, load=f"timm.create_model({call}, checkpoint_path='{target.name}/model.safetensors')")


def _pretrained_cfg(network: ExportNetwork, model: Any) -> dict[str, Any]:
    """What timm prepares images by, and the names of the model's ends."""
    rows, columns = network.image_size
    whole = options_of_preparation(network)['edge'] is None
    ends = {key: model.pretrained_cfg[key] for key in ('first_conv', 'classifier')}
    return dict(
        num_classes=0,
        input_size=[network.in_channels, rows, columns],
        fixed_input_size=network.kind != RESNET,
        crop_pct=1.0 if whole else 0.875,
        crop_mode='squash' if whole else 'center',
        interpolation='bicubic',
        mean=network.mean,
        std=network.std,
        custom_load=False,
        **ends,
    )


def options_of_preparation(network: ExportNetwork) -> dict[str, Any]:
    """``edge``, the short edge that images are resized to before the middle is cut out; None if they are not cut."""
    from poa_mm.deploy.config_text import preparation

    first = preparation(network.image_size, network.in_channels)[0]
    is_cut = first['type'].rpartition('.')[2] == 'ResizeEdge'
    return dict(edge=first['scale'] if is_cut else None)
