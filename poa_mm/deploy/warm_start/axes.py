"""What of a supernet can be put into another order without changing what it computes at full size.

An axis is one row of units that everything which touches it has in the same order: the channels of the residual stream,
the heads of one attention, the hidden units of one MLP, the mid channels of one convolution. Smaller subnets take
leading units of each, so that the important ones ought to come first.

- ViT: the residual stream from the embeddings to the last norm is one axis. The features come out in its order.
- Swin: the residual stream of each stage is one. Patch merging takes that of one stage and gives that of the next.
- ResNet: the mid channels after the first and after the second convolution of each bottleneck. A norm looks at groups
  of neighbours, so that channels change places within their group, and groups as wholes. What stages give is never cut
  and stays.

Channels within a head stay: subnets take whole heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from poa_mm.models.backbones import ElasticResNet, ElasticSwinTransformer, ElasticVisionTransformer
from poa_mm.models.backbones.elastic_backbone import ElasticBackbone


class Part(NamedTuple):
    """Where the units of an axis lie in one parameter.

    Args:
        name: Of the parameter.
        dim: Along which they lie.
        gives: Whether what the unit gives to the rest is proportional to these numbers: without them it is not there.
        copies: How many rows of all units lie one after another: 3 in a matrix of queries, keys and values.
        size: Numbers of each unit in each row: the channels of a head.
    """

    name: str
    dim: int
    gives: bool = False
    copies: int = 1
    size: int = 1


class Axis(NamedTuple):
    """Units that change places together.

    Args:
        name: What it is.
        units: How many there are.
        parts: Where they lie.
        groups: In how many groups of neighbours they have to stay. Default: 1.
    """

    name: str
    units: int
    parts: tuple[Part, ...]
    groups: int = 1


def axes_of(backbone: ElasticBackbone) -> list[Axis]:
    """All axes of a backbone.

    Raises:
        TypeError: If it is of no known family.
    """
    for kind, find in ((ElasticVisionTransformer, _vit), (ElasticSwinTransformer, _swin), (ElasticResNet, _resnet)):
        if isinstance(backbone, kind):
            names = dict(backbone.named_parameters())
            axes = [
                axis._replace(parts=tuple(part for part in axis.parts if part.name in names)) for axis in find(backbone)
            ]
            if kind is not ElasticResNet:  # whose stem and shortcuts are never cut
                known = {part.name for axis in axes for part in axis.parts}
                assert known == names.keys(), f'parameters of no axis: {sorted(names.keys() - known)}'
            return axes
    raise TypeError(f'{type(backbone).__name__} is no elastic backbone that can be ordered')


def feature_axis(backbone: ElasticBackbone) -> str | None:
    """Name of the axis in whose order the features come out; None if they stay as they are."""
    if isinstance(backbone, ElasticResNet):
        return None
    return _stage_axis(backbone.num_layers - 1) if isinstance(backbone, ElasticSwinTransformer) else 'channels'


def _stage_axis(stage: int) -> str:
    return f'channels of stage {stage}'


def _both(name: str, gives: bool = False, size: int = 1) -> list[Part]:
    """Weight and bias of a norm, or the outputs of a linear layer."""
    return [Part(f'{name}.{part}', 0, gives, size=size) for part in ('weight', 'bias')]


def _mlp(name: str, hidden: int) -> Axis:
    inner, outer = f'{name}.layers.0.0', f'{name}.layers.1'
    return Axis(f'{name} units', hidden, (*_both(inner), Part(f'{outer}.weight', 1, gives=True)))


def _heads(name: str, heads: int, size: int, *more: Part) -> Axis:
    qkv = [Part(f'{name}.qkv.{part}', 0, copies=3, size=size) for part in ('weight', 'bias')]
    return Axis(f'{name} heads', heads, (*qkv, Part(f'{name}.proj.weight', 1, gives=True, size=size), *more))


def _vit(network: ElasticVisionTransformer) -> Iterator[Axis]:
    stream = [Part(name, 2, not network.with_pre_norm) for name in ('cls_token', 'pos_embed')]
    stream += [Part('mask_token', 2), *_both('patch_embed.projection', not network.with_pre_norm)]
    stream += _both('pre_norm', True)
    for index in range(network.num_layers):
        layer = f'layers.{index}'
        stream += [*_both(f'{layer}.ln1'), Part(f'{layer}.attn.qkv.weight', 1), *_both(f'{layer}.attn.proj', True)]
        stream += [Part(f'{layer}.attn.gamma1.weight', 0), *_both(f'{layer}.ln2')]
        stream += [Part(f'{layer}.ffn.layers.0.0.weight', 1), *_both(f'{layer}.ffn.layers.1', True)]
        stream += [Part(f'{layer}.ffn.gamma2.weight', 0)]
        yield _heads(f'{layer}.attn', network.embed_dims // network.head_dim, network.head_dim)
        yield _mlp(f'{layer}.ffn', network.hidden_dims)
    stream += [*_both('ln1', True), *_both('ln2', True)]
    yield Axis('channels', network.embed_dims, tuple(stream))


def _swin(network: ElasticSwinTransformer) -> Iterator[Axis]:
    stream = [*_both('patch_embed.projection'), *_both('patch_embed.norm', True)]
    stream += [Part('mask_token', 2), Part('absolute_pos_embed', 2, True)]
    for stage, (width, depth) in enumerate(zip(network.stage_channels, network.depths)):
        for index in range(depth):
            block = f'stages.{stage}.blocks.{index}'
            attention = f'{block}.attn.w_msa'
            stream += [*_both(f'{block}.norm1'), Part(f'{attention}.qkv.weight', 1), *_both(f'{attention}.proj', True)]
            stream += [*_both(f'{block}.norm2'), Part(f'{block}.ffn.layers.0.0.weight', 1)]
            stream += _both(f'{block}.ffn.layers.1', True)
            biases = Part(f'{attention}.relative_position_bias_table', 1)
            yield _heads(attention, width // network.head_dim, network.head_dim, biases)
            yield _mlp(f'{block}.ffn', network.stages[stage].blocks[index].ffn.layers[1].in_features)
        stream += _both(f'norm{stage}', True)
        merging = f'stages.{stage}.downsample'
        # The four tokens of a cell lie channel by channel.
        stream += [*_both(f'{merging}.norm', size=4), Part(f'{merging}.reduction.weight', 1, size=4)]
        yield Axis(_stage_axis(stage), width, tuple(stream))
        stream = [Part(f'{merging}.reduction.weight', 0, True)]


def _resnet(network: ElasticResNet) -> Iterator[Axis]:
    groups = network.norm_cfg['num_groups']
    for stage, name in enumerate(network.res_layers):
        for index, block in enumerate(getattr(network, name)):
            for number, norm in ((1, block.norm1_name), (2, block.norm2_name)):
                first, then = f'{name}.{index}.conv{number}.weight', f'{name}.{index}.conv{number + 1}.weight'
                parts = (Part(first, 0), *_both(f'{name}.{index}.{norm}'), Part(then, 1, gives=True))
                mid = network.mid_channels * 2**stage
                yield Axis(f'{name}.{index} channels after conv{number}', mid, parts, groups)


# --- order -----------------------------------------------------------------------------------
def split(value: Tensor, part: Part, units: int) -> Tensor:
    """The numbers of each unit in a parameter: ``(units, everything else)``."""
    rows = value.movedim(part.dim, 0).unflatten(0, (part.copies, units, part.size))
    return rows.transpose(0, 1).flatten(1)


def order_of(importance: Tensor, groups: int = 1) -> Tensor:
    """Units from the most important one, groups from the one that is in sum; equal ones as they were.

    Args:
        importance: ``(units,)``.
        groups: In which the units have to stay. Default: 1.
    """
    by_group = importance.unflatten(0, (groups, -1))
    outer = by_group.sum(dim=1).argsort(descending=True, stable=True)
    inner = by_group.argsort(dim=1, descending=True, stable=True)  # (groups, units / groups)
    starts = torch.arange(groups, device=importance.device)[:, None] * by_group.shape[1]
    return (starts + inner)[outer].flatten()


def reorder(weights: Mapping[str, Tensor], axes: list[Axis], orders: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights with the units of each axis in another order.

    Args:
        weights: Of the backbone.
        axes: Of the backbone.
        orders: By the name of an axis, the unit that comes to each place.
    """
    weights = dict(weights)
    for axis in axes:
        for part in axis.parts:
            value = weights[part.name]
            rows = value.movedim(part.dim, 0).unflatten(0, (part.copies, axis.units, part.size))
            weights[part.name] = rows[:, orders[axis.name]].flatten(0, 2).movedim(0, part.dim).contiguous()
    return weights
