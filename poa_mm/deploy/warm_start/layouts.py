"""Names of weights in other libraries, and what they are called in mmpretrain's networks, which ours are at full size.

A layout is recognised by two names that no other has together. Whatever lies under the same prefix has to be known:
a weight of the backbone, a part that is not of it (heads, decoders), or a part that an elastic backbone does not have,
which is an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from poa_mm.checkpoint import CheckpointError, shorten

VIT, SWIN, RESNET = 'ElasticVisionTransformer', 'ElasticSwinTransformer', 'ElasticResNet'
_WB = r'(weight|bias)'

# Parts that lie beside a backbone. They are left out, and named.
HEADS = {
    *('head', 'heads', 'head_drop', 'pre_logits', 'fc', 'classifier', 'pooler', 'neck', 'projector', 'predictor'),
    *('dino_head', 'ibot_head', 'dino_loss', 'ibot_patch_loss', 'cls_head', 'decode_head', 'auxiliary_head'),
    *('decoder', 'decoder_embed', 'decoder_pos_embed', 'decoder_blocks', 'decoder_norm', 'decoder_pred'),
    'data_preprocessor',
}
# Parts of a backbone that ours do not have, by patterns of their names.
UNSUPPORTED = {
    r'.*\.(running_mean|running_var|num_batches_tracked)': (
        'BatchNorm. The supernet has GroupNorm, as subnets that shared batch statistics would spoil them for each '
        'other; a ResNet that was trained with GroupNorm fits, such as resnet50_gn of timm'
    ),
    r'reg_token|register_tokens|embeddings\.register_tokens': 'register tokens',
    r'dist_token|embeddings\.distillation_token|head_dist\..*|distillation_classifier\..*': 'a distillation token',
    r'.*\.(mlp|ffn)\.(w12|w1|w2|w3|fc1_g|fc1_x|weights_in|weights_out)\..*': 'a SwiGLU MLP',
    r'.*\.attn\.(q_norm|k_norm|norm)\..*': 'norms within the attention',
    r'.*\.mlp\.norm\..*': 'a norm within the MLP',
    r'.*(logit_scale|cpb_mlp.*)': 'the attention of Swin V2',
    r'blocks\..*relative_position.*|rel_pos_bias\..*': 'relative position biases in a ViT',
    r'rope.*|.*\.rope\..*|.*\.freqs.*': 'rotary position embeddings',
    r'norm_pre\..*': "a norm before the first block (CLIP), whose activation the weights don't show",
    r'attn_pool\..*': 'attention pooling',
    r'layer\d\.\d+\.se\..*': 'squeeze and excitation',
}


class Layout(NamedTuple):
    """How a library names the weights of a kind of network.

    Args:
        name: What messages call it.
        library: The package whose network it is.
        family: Class of the elastic backbone that it fits.
        signature: Patterns of names that are all there, after the same prefix.
        rules: Patterns of names, and the names in mmpretrain's network; a group ``x`` marks a name that follows from
            the others and is left out.
    """

    name: str
    library: str
    family: str
    signature: tuple[str, ...]
    rules: Mapping[str, str]


_TIMM_BLOCK = r'blocks\.(?:\d+\.(?=\d))?(\d+)\.'  # DINOv2 nests blocks in chunks, and counts through all of them
_HF_BLOCK, _MM_BLOCK = r'encoder\.layer\.(\d+)\.', r'layers\.(\d+)\.'
_SWIN_BLOCK = r'layers\.(\d+)\.blocks\.(\d+)\.'
_MM_SWIN = r'(stages\.\d+\.blocks\.\d+\.(?:norm[12]|attn\.w_msa\.(?:qkv|proj)|ffn\.layers\.(?:0\.0|1)))\.'
_TORCH_BLOCK = r'layer(\d)\.(\d+)\.'
_HF_COMMON = {
    r'embeddings\.(cls_token|mask_token)': r'\1',
    r'embeddings\.position_embeddings': r'pos_embed',
    rf'embeddings\.patch_embeddings\.projection\.{_WB}': r'patch_embed.projection.\1',
    rf'{_HF_BLOCK}attention\.attention\.(query|key|value)\.{_WB}': r'layers.\1.attn.\2.\3',
    rf'{_HF_BLOCK}attention\.output\.dense\.{_WB}': r'layers.\1.attn.proj.\2',
    rf'layernorm\.{_WB}': r'ln1.\1',
}
LAYOUTS = (
    Layout(
        'timm ViT (also DeiT, DINO, DINOv2, MAE)',
        'timm',
        VIT,
        (r'patch_embed\.proj\.weight', r'blocks\.0\.(?:0\.)?norm1\.weight'),
        {
            r'(cls_token|pos_embed|mask_token)': r'\1',
            rf'patch_embed\.proj\.{_WB}': r'patch_embed.projection.\1',
            rf'{_TIMM_BLOCK}norm([12])\.{_WB}': r'layers.\1.ln\2.\3',
            rf'{_TIMM_BLOCK}attn\.(qkv|proj)\.{_WB}': r'layers.\1.attn.\2.\3',
            rf'{_TIMM_BLOCK}attn\.q_bias': r'layers.\1.attn.query.bias',
            rf'{_TIMM_BLOCK}attn\.v_bias': r'layers.\1.attn.value.bias',
            rf'{_TIMM_BLOCK}(?:ls1\.gamma|gamma_1)': r'layers.\1.attn.gamma1.weight',
            rf'{_TIMM_BLOCK}(?:ls2\.gamma|gamma_2)': r'layers.\1.ffn.gamma2.weight',
            rf'{_TIMM_BLOCK}mlp\.fc1\.{_WB}': r'layers.\1.ffn.layers.0.0.\2',
            rf'{_TIMM_BLOCK}mlp\.fc2\.{_WB}': r'layers.\1.ffn.layers.1.\2',
            rf'norm\.{_WB}': r'ln1.\1',
            rf'fc_norm\.{_WB}': r'ln2.\1',
        },
    ),
    Layout(
        "transformers' Dinov2Model",
        'transformers',
        VIT,
        (r'embeddings\.patch_embeddings\.projection\.weight', r'encoder\.layer\.0\.norm1\.weight'),
        {
            **_HF_COMMON,
            rf'{_HF_BLOCK}norm([12])\.{_WB}': r'layers.\1.ln\2.\3',
            rf'{_HF_BLOCK}layer_scale1\.lambda1': r'layers.\1.attn.gamma1.weight',
            rf'{_HF_BLOCK}layer_scale2\.lambda1': r'layers.\1.ffn.gamma2.weight',
            rf'{_HF_BLOCK}mlp\.fc1\.{_WB}': r'layers.\1.ffn.layers.0.0.\2',
            rf'{_HF_BLOCK}mlp\.fc2\.{_WB}': r'layers.\1.ffn.layers.1.\2',
        },
    ),
    Layout(
        "transformers' ViTModel",
        'transformers',
        VIT,
        (r'embeddings\.patch_embeddings\.projection\.weight', r'encoder\.layer\.0\.layernorm_before\.weight'),
        {
            **_HF_COMMON,
            rf'{_HF_BLOCK}layernorm_before\.{_WB}': r'layers.\1.ln1.\2',
            rf'{_HF_BLOCK}layernorm_after\.{_WB}': r'layers.\1.ln2.\2',
            rf'{_HF_BLOCK}intermediate\.dense\.{_WB}': r'layers.\1.ffn.layers.0.0.\2',
            rf'{_HF_BLOCK}output\.dense\.{_WB}': r'layers.\1.ffn.layers.1.\2',
        },
    ),
    Layout(
        "mmpretrain's VisionTransformer",
        'mmpretrain',
        VIT,
        (r'patch_embed\.projection\.weight', r'layers\.0\.ln1\.weight'),
        {
            r'(cls_token|pos_embed|mask_token)': r'\1',
            rf'(patch_embed\.projection|pre_norm|ln1|ln2)\.{_WB}': r'\1.\2',
            rf'{_MM_BLOCK}(ln1|ln2|attn\.qkv|attn\.proj|ffn\.layers\.0\.0|ffn\.layers\.1)\.{_WB}': r'layers.\1.\2.\3',
            rf'{_MM_BLOCK}(attn\.gamma1|ffn\.gamma2)\.weight': r'layers.\1.\2.weight',
        },
    ),
    Layout(
        'timm Swin',
        'timm',
        SWIN,
        (r'patch_embed\.proj\.weight', r'layers\.0\.blocks\.0\.norm1\.weight'),
        {
            r'absolute_pos_embed': r'absolute_pos_embed',
            rf'patch_embed\.proj\.{_WB}': r'patch_embed.projection.\1',
            rf'patch_embed\.norm\.{_WB}': r'patch_embed.norm.\1',
            rf'{_SWIN_BLOCK}norm([12])\.{_WB}': r'stages.\1.blocks.\2.norm\3.\4',
            rf'{_SWIN_BLOCK}attn\.relative_position_bias_table': (
                r'stages.\1.blocks.\2.attn.w_msa.relative_position_bias_table'
            ),
            rf'{_SWIN_BLOCK}attn\.(qkv|proj)\.{_WB}': r'stages.\1.blocks.\2.attn.w_msa.\3.\4',
            rf'{_SWIN_BLOCK}mlp\.fc1\.{_WB}': r'stages.\1.blocks.\2.ffn.layers.0.0.\3',
            rf'{_SWIN_BLOCK}mlp\.fc2\.{_WB}': r'stages.\1.blocks.\2.ffn.layers.1.\3',
            r'layers\.(\d+)\.downsample\.(norm|reduction)\.(weight|bias)': r'downsample.\1.\2.\3',
            rf'norm\.{_WB}': r'norm3.\1',
            rf'(?P<x>{_SWIN_BLOCK}(?:attn\.relative_position_index|attn_mask))': '',
        },
    ),
    Layout(
        "mmpretrain's SwinTransformer",
        'mmpretrain',
        SWIN,
        (r'patch_embed\.projection\.weight', r'stages\.0\.blocks\.0\.norm1\.weight'),
        {
            r'absolute_pos_embed': r'absolute_pos_embed',
            rf'(patch_embed\.projection|patch_embed\.norm|norm\d)\.{_WB}': r'\1.\2',
            r'(?P<x>stages\.\d+\.blocks\.\d+\.attn\.(?:w_msa\.relative_position_index|attn_mask))': '',
            rf'{_MM_SWIN}{_WB}': r'\1.\2',
            r'(stages\.\d+\.blocks\.\d+\.attn\.w_msa\.relative_position_bias_table)': r'\1',
            rf'(stages\.\d+\.downsample\.(?:norm|reduction))\.{_WB}': r'\1.\2',
        },
    ),
    Layout(
        'torchvision or timm ResNet',
        'torchvision',
        RESNET,
        (r'conv1\.weight', r'layer1\.0\.bn1\.weight'),
        {
            r'conv1\.weight': r'conv1.weight',
            rf'bn1\.{_WB}': r'gn1.\1',
            rf'{_TORCH_BLOCK}conv([123])\.weight': r'layer\1.\2.conv\3.weight',
            rf'{_TORCH_BLOCK}bn([123])\.{_WB}': r'layer\1.\2.gn\3.\4',
            rf'{_TORCH_BLOCK}downsample\.([01])\.{_WB}': r'layer\1.\2.downsample.\3.\4',
        },
    ),
    Layout(
        "mmpretrain's ResNet",
        'mmpretrain',
        RESNET,
        (r'layer1\.0\.conv1\.weight', r'layer1\.0\.gn1\.weight'),
        {
            r'conv1\.weight': r'conv1.weight',
            rf'(stem\.\d+|gn1)\.{_WB}': r'\1.\2',
            rf'(layer\d\.\d+\.(?:conv[123]|gn[123]|downsample\.\d))\.{_WB}': r'\1.\2',
        },
    ),
)


class Found(NamedTuple):
    """Weights whose layout is known.

    Args:
        layout: The layout.
        raw: Weights of the backbone under the library's names.
        weights: The same under mmpretrain's names.
        left_out: Names of the parts that are none of the backbone's.
    """

    layout: Layout
    raw: dict[str, Tensor]
    weights: dict[str, Tensor]
    left_out: list[str]


def recognise(weights: Mapping[str, Tensor], what: object) -> Found:
    """Find the layout of some weights, and give each its name in mmpretrain's network.

    Args:
        weights: By name.
        what: What errors call the file.

    Raises:
        CheckpointError: If the layout is none that is known, there are several networks, or a weight is unknown or of
            a part that elastic backbones do not have; names it.
    """
    layout, prefix = _layout_of(weights, what)
    raw: dict[str, Tensor] = {}
    converted: dict[str, Tensor] = {}
    left_out: dict[str, None] = {}
    inside = {name[len(prefix) :] for name in weights if name.startswith(prefix)}
    has_decoder = any(name.startswith('decoder_') for name in inside)
    for full, value in weights.items():
        name = full[len(prefix) :] if full.startswith(prefix) else None
        part = name if name is not None else full
        for pattern, parts in UNSUPPORTED.items():
            if re.fullmatch(pattern, part):
                raise CheckpointError(f'{what}: {full} is of {parts}. Such weights cannot be taken')
        if _is_beside(name, full, prefix) or (has_decoder and name == 'mask_token'):
            first = (prefix if name is not None else '') + part.split('.')[0]
            left_out[first if first == full else f'{first}.*'] = None
            continue
        new = None if name is None else _renamed(name, layout.rules)
        if new is None:
            raise CheckpointError(f'{what}: unknown weight {full}: no part of {layout.name} as this tool knows it')
        if new in converted:
            raise CheckpointError(f'{what}: two weights are {new} of mmpretrain, {full} is one of them')
        raw[part] = value
        if new:
            converted[new] = value
    return Found(layout, raw, converted, list(left_out))


def _layout_of(weights: Mapping[str, Tensor], what: object) -> tuple[Layout, str]:
    """The layout, and the prefix of its names."""
    found = []
    for layout in LAYOUTS:
        first, *others = (re.compile(rf'((?:.*\.)?){pattern}') for pattern in layout.signature)
        prefixes = {match[1] for name in weights if (match := first.fullmatch(name))}
        for other in others:
            prefixes &= {match[1] for name in weights if (match := other.fullmatch(name))}
        found += [(layout, prefix) for prefix in sorted(prefixes)]
    teachers = [(layout, prefix) for layout, prefix in found if 'teacher' in prefix.split('.')]
    found = teachers if len(found) > 1 and teachers else found
    if not found:
        known = '; '.join(layout.name for layout in LAYOUTS)
        raise CheckpointError(f'{what}: the names of its weights ({shorten(weights, 3)}) are of none of: {known}')
    if len(found) > 1:
        names = ', '.join(f'{prefix or "without prefix"} ({layout.name})' for layout, prefix in found)
        raise CheckpointError(f'{what} holds several networks, one has to be saved by itself: {names}')
    return found[0]


def _is_beside(name: str | None, full: str, prefix: str) -> bool:
    """Whether a weight, called ``name`` if it lies under the prefix of the backbone, is none of the backbone's."""
    if name is not None:
        return name.split('.')[0] in HEADS
    branches = prefix.split('.')[0], full.split('.')[0]
    return branches == ('teacher', 'student') or bool(HEADS & set(full.split('.')[:3]))


def _renamed(name: str, rules: Mapping[str, str]) -> str | None:
    """The new name, empty for one that is left out, None for an unknown one."""
    for pattern, new in rules.items():
        if match := re.fullmatch(pattern, name):
            return match.expand(new)
    return None


def blocks_in(names: Iterable[str], pattern: str) -> int:
    """How many blocks there are: the highest number that ``pattern`` finds in a name, and one."""
    numbers = [int(match[1]) for name in names if (match := re.match(pattern, name))]
    return max(numbers, default=-1) + 1
