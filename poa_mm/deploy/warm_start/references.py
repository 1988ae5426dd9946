"""The network that weights are from, built by its own library, and compared with the supernet."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from mmengine.utils import to_2tuple
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from poa_mm.checkpoint import CheckpointError
from poa_mm.deploy.export.to_timm import mlp_ratio
from poa_mm.evaluation.backbone import FAMILIES
from poa_mm.models.backbones.elastic_backbone import Features, map_features

from .layouts import RESNET, SWIN, VIT
from .source import OURS, Source

TOLERANCE = 1e-4  # largest difference of a feature, in float64
IMAGES = 2

Compute = Callable[[Tensor], Features]


class Reference(NamedTuple):
    """What a source computes.

    Args:
        library: The package whose network computed it, with its version.
        features: Of ``images``.
        images: Random ones of the size that the source is made for, in float64.
        eps: Of the norms of its network, which change features too little to be seen in them.
    """

    library: str
    features: Features
    images: Tensor
    eps: frozenset[float]


class Network(NamedTuple):
    """A network of a library.

    Args:
        module: The network.
        compute: Its features of images.
    """

    module: nn.Module
    compute: Compute


@torch.no_grad()
def compute_reference(source: Source) -> Reference:
    """Features by a network of the source's own library or, where that is not installed, of mmpretrain.

    Raises:
        CheckpointError: If the library's network does not take the weights.
    """
    size = to_2tuple(source.config.get('img_size', 64))
    channels = source.config.get('in_channels', 3)
    images = torch.randn(IMAGES, channels, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own = _BUILD.get((source.library, source.family)) if find_spec(source.library) else None
    try:
        network = own(source) if own else None
        library = source.library if network else 'mmpretrain'
        network = network or _by_mmpretrain(source)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        text = ' '.join(str(error).split())[:300]
        raise CheckpointError(
            f'{source.path}: a network of {source.library} does not take the weights: {text}'
        ) from error
    return Reference(f'{library} {_version(library)}', network.compute(images), images, eps_of(network.module))


def eps_of(network: nn.Module) -> frozenset[float]:
    """Those of all norms of a network."""
    return frozenset(norm.eps for norm in network.modules() if isinstance(norm, (nn.LayerNorm, nn.GroupNorm)))


def _version(library: str) -> str:
    return getattr(__import__(library), '__version__', '')


@torch.no_grad()
def compare_features(backbone: nn.Module, reference: Reference, what: object) -> float:
    """Largest difference between the features of a supernet at full size and of its source.

    Args:
        backbone: In float64, for images of the size of the source's.
        reference: Of the source.
        what: What errors call the file.

    Raises:
        CheckpointError: If it is more than ``TOLERANCE``.
    """
    if eps_of(backbone) != reference.eps:
        raise CheckpointError(
            f'{what}: norms of the network of {reference.library} have eps {sorted(reference.eps)}, those of the config'
            f' {sorted(eps_of(backbone))}'
        )
    found = backbone.extract_features(reference.images)
    difference = largest_difference(found, reference.features)
    if not difference <= TOLERANCE:  # NaN is none either
        raise CheckpointError(
            f'{what}: the supernet does not compute what the network of {reference.library} does: features differ by '
            f'{difference:.2g}, more than {TOLERANCE:g}'
        )
    return difference


def largest_difference(found: Features, expected: Features) -> float:
    """Of the class and patch features."""
    return max((a - b).abs().max().item() for a, b in zip(found, expected))


def _loaded(network: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    network.load_state_dict(weights)  # strict
    network.double().eval()  # mmpretrain's returns None
    return network


# --- by library ------------------------------------------------------------------------------
def _by_mmpretrain(source: Source) -> Network:
    config = {**source.config, 'init_cfg': None}
    if source.family == SWIN and source.layout not in OURS:
        # As that class is by default: then it is what decides which blocks are shifted.
        config = {key: value for key, value in config.items() if key not in ('pad_small_map', 'stage_cfgs')}
    network = MODELS.build(config)
    weights = {name: value for name, value in source.weights.items() if name != 'mask_token'}
    own = network.state_dict()
    weights |= {name: own[name] for name in own if name.endswith('relative_position_index') and name not in weights}
    family = FAMILIES[source.config['type'].rpartition('.')[2]]
    return Network(network, partial(family.plain_features, _loaded(network, weights)))


def _timm_vit(source: Source) -> Network:
    import timm
    from timm.models.vision_transformer import VisionTransformer

    config, arch = source.config, source.config['arch']
    raw = {
        re.sub(r'^blocks\.\d+\.(?=\d)', 'blocks.', name): value
        for name, value in source.raw.items()
        if name != 'mask_token'
    }
    renames = {r'gamma_([12])$': r'ls\1.gamma'}  # of DeiT III and BEiT, which timm's ViT calls otherwise
    for old, new in renames.items():
        raw = {re.sub(old, new, name): value for name, value in raw.items()}
    for name in [name for name in raw if name.endswith('.q_bias')]:
        prefix = name.removesuffix('q_bias')
        query, value = raw.pop(name), raw.pop(f'{prefix}v_bias')
        raw[f'{prefix}qkv.bias'] = torch.cat([query, torch.zeros_like(query), value])
    averaged = config['out_type'] == 'avg_featmap'
    patches = config['img_size'][0] // config['patch_size'][0] * (config['img_size'][1] // config['patch_size'][1])
    options: dict[str, Any] = dict(
        img_size=config['img_size'],
        patch_size=config['patch_size'],
        in_chans=config['in_channels'],
        num_classes=0,
        global_pool='avg' if averaged else 'token' if config['with_cls_token'] else '',
        class_token=config['with_cls_token'],
        no_embed_class=config['with_cls_token'] and raw['pos_embed'].shape[1] == patches,
        qkv_bias=config['qkv_bias'],
        init_values=1.0 if config['layer_scale_init_value'] > 0 else None,
        final_norm=config['final_norm'] or averaged,
    )
    architecture = source.settings.get('architecture')
    if architecture in timm.list_models('*vit*'):  # with the heads, activation and eps of that network
        network = timm.create_model(architecture, **(source.settings.get('model_args') or {}), **_of_file(options))
    else:
        network = VisionTransformer(
            embed_dim=arch['embed_dims'],
            depth=arch['num_layers'],
            num_heads=arch['num_heads'],
            mlp_ratio=mlp_ratio(arch['embed_dims'], arch['feedforward_channels']),
            **options,
        )
    _loaded(network, raw)

    def compute(images: Tensor) -> Features:
        tokens = network.forward_features(images)
        patch = tokens[:, int(config['with_cls_token']) :]
        if averaged:
            return Features(network.fc_norm(patch.mean(dim=1)), patch)
        return Features(tokens[:, 0] if config['with_cls_token'] else patch.mean(dim=1), patch)

    return Network(network, compute)


def _of_file(options: Mapping[str, Any]) -> dict[str, Any]:
    """What the weights show for certain, which an architecture's own settings may differ in."""
    return {key: options[key] for key in ('img_size', 'in_chans', 'num_classes')}


def _transformers_vit(source: Source) -> Network:
    from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

    config, arch = source.config, source.config['arch']
    options: dict[str, Any] = dict(
        hidden_size=arch['embed_dims'],
        num_hidden_layers=arch['num_layers'],
        num_attention_heads=arch['num_heads'],
        image_size=config['img_size'],
        patch_size=config['patch_size'],
        num_channels=config['in_channels'],
        qkv_bias=config['qkv_bias'],
        layer_norm_eps=config['norm_cfg']['eps'],
        hidden_act=source.settings.get('hidden_act', 'gelu'),
    )
    if source.layout.endswith('ViTModel'):
        settings = ViTConfig(**options, intermediate_size=arch['feedforward_channels'])
        network = ViTModel(settings, add_pooling_layer=False)
    else:
        ratio = arch['feedforward_channels'] / arch['embed_dims']
        network = Dinov2Model(Dinov2Config(**options, mlp_ratio=int(ratio) if ratio == int(ratio) else ratio))
    raw = dict(source.raw)
    if 'embeddings.mask_token' not in raw and 'embeddings.mask_token' in network.state_dict():
        raw['embeddings.mask_token'] = network.state_dict()['embeddings.mask_token']  # which nothing is masked with
    _loaded(network, {name: value for name, value in raw.items() if name in network.state_dict() or 'mask' not in name})

    def compute(images: Tensor) -> Features:
        tokens = network(pixel_values=images).last_hidden_state
        return Features(tokens[:, 0], tokens[:, 1:])

    return Network(network, compute)


def _timm_swin(source: Source) -> Network:
    from timm.models.swin_transformer import SwinTransformer

    config, arch = source.config, source.config['arch']
    network = SwinTransformer(
        img_size=config['img_size'],
        patch_size=config['patch_size'],
        in_chans=config['in_channels'],
        num_classes=0,
        embed_dim=arch['embed_dims'],
        depths=arch['depths'],
        num_heads=arch['num_heads'],
        window_size=config['window_size'],
    )
    raw = {
        name: value for name, value in source.raw.items() if not re.search(r'attn_mask|relative_position_index', name)
    }
    if any(name.startswith('layers.0.downsample.') for name in raw):  # older ones merge after a stage
        raw = {
            re.sub(r'^layers\.(\d+)\.downsample', lambda match: f'layers.{int(match[1]) + 1}.downsample', name): value
            for name, value in raw.items()
        }
    _loaded(network, raw)
    return Network(network, lambda images: map_features(network.forward_features(images).permute(0, 3, 1, 2)))


def _torchvision_resnet(source: Source) -> Network | None:
    """None where torchvision's class has no such network."""
    from torchvision.models.resnet import Bottleneck, ResNet

    from .fit import sizes_of

    sizes = sizes_of(source.config)
    if sizes['outputs'] != 256 or sizes['stem_channels'] != 64 or sizes['deep_stem'] or sizes['avg_down']:
        return None
    network = ResNet(
        Bottleneck,
        list(sizes['stage_blocks']),
        num_classes=1,
        width_per_group=sizes['mid_channels'],
        norm_layer=partial(nn.GroupNorm, sizes['num_groups']),
    )
    network.conv1 = nn.Conv2d(sizes['in_channels'], 64, 7, 2, 3, bias=False)
    network.fc = nn.Identity()
    _loaded(network, source.raw)

    def compute(images: Tensor) -> Features:
        x = network.maxpool(network.relu(network.bn1(network.conv1(images))))
        return map_features(network.layer4(network.layer3(network.layer2(network.layer1(x)))))

    return Network(network, compute)


_BUILD: Mapping[tuple[str, str], Callable[[Source], Network | None]] = {
    ('timm', VIT): _timm_vit,
    ('transformers', VIT): _transformers_vit,
    ('timm', SWIN): _timm_swin,
    ('torchvision', RESNET): _torchvision_resnet,
}
