"""Import of checkpoints that were trained with the authors' public code."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mmengine
from mmengine.config import Config
from mmpretrain.registry import MODELS
from torch import Tensor

from poa_mm.checkpoint import (
    SUPERNET_KEY,
    CheckpointError,
    check_finite,
    check_state,
    describe_supernet,
    file_sha256,
    read_checkpoint,
    shorten,
)
from poa_mm.mistakes import check_out_file
from poa_mm.models import POA
from poa_mm.models.selfsup.frozen_teacher import drop
from poa_mm.version import __version__

from .staged_files import StagedFiles, save_to

# Patterns of names in the public code, and what they become here.
# With block_chunks the public code nests the blocks, as blocks.CHUNK.N; N counts through all chunks.
_BLOCK = r'backbone\.blocks\.(?:\d+\.)?(\d+)\.'
VIT_RULES = {
    r'backbone\.(cls_token|pos_embed|mask_token)': r'backbone.\1',
    r'backbone\.patch_embed\.proj\.(weight|bias)': r'backbone.patch_embed.projection.\1',
    _BLOCK + r'norm([12])\.norm\.(weight|bias)': r'backbone.layers.\1.ln\2.\3',
    _BLOCK + r'attn\.(qkv|proj)\.linear\.(weight|bias)': r'backbone.layers.\1.attn.\2.\3',
    _BLOCK + r'ls1\.gamma': r'backbone.layers.\1.attn.gamma1.weight',
    _BLOCK + r'mlp\.fc1\.linear\.(weight|bias)': r'backbone.layers.\1.ffn.layers.0.0.\2',
    _BLOCK + r'mlp\.fc2\.linear\.(weight|bias)': r'backbone.layers.\1.ffn.layers.1.\2',
    _BLOCK + r'ls2\.gamma': r'backbone.layers.\1.ffn.gamma2.weight',
    r'backbone\.norm\.norm\.(weight|bias)': r'backbone.ln1.\1',
}
_SWIN_MERGING = r'backbone\.stages\.(\d+)\.downsample\.'
_SWIN_BLOCK = r'backbone\.stages\.(\d+)\.blocks\.(\d+)\.'
SWIN_RULES = {
    r'backbone\.mask_token': r'backbone.mask_token',
    r'backbone\.patch_embed\.proj\.(weight|bias)': r'backbone.patch_embed.projection.\1',
    r'backbone\.patch_embed\.norm\.norm\.(weight|bias)': r'backbone.patch_embed.norm.\1',
    _SWIN_BLOCK + r'norm([12])\.norm\.(weight|bias)': r'backbone.stages.\1.blocks.\2.norm\3.\4',
    _SWIN_BLOCK + r'attn\.w_msa\.(relative_position_\w+)': r'backbone.stages.\1.blocks.\2.attn.w_msa.\3',
    _SWIN_BLOCK + r'attn\.w_msa\.(qkv|proj)\.linear\.(weight|bias)': r'backbone.stages.\1.blocks.\2.attn.w_msa.\3.\4',
    _SWIN_BLOCK + r'ffn\.fc1\.linear\.(weight|bias)': r'backbone.stages.\1.blocks.\2.ffn.layers.0.0.\3',
    _SWIN_BLOCK + r'ffn\.fc2\.linear\.(weight|bias)': r'backbone.stages.\1.blocks.\2.ffn.layers.1.\3',
    _SWIN_MERGING + r'norm\.norm\.(weight|bias)': r'backbone.stages.\1.downsample.norm.\2',
    _SWIN_MERGING + r'reduction\.linear\.weight': r'backbone.stages.\1.downsample.reduction.weight',
    r'backbone\.norm3\.norm\.(weight|bias)': r'backbone.norm3.\1',
}
# Swin's norms on the output of earlier stages, which nothing in pre-training looks at.
_UNUSED = r'backbone\.norm[012]\.norm\.(weight|bias)'
_STAGE = r'backbone\.layer(\d+)\.layers\.(\d+)\.'
RESNET_RULES = {
    r'backbone\.mask_token': r'backbone.mask_token',
    r'backbone\.conv1\.weight': r'backbone.conv1.weight',
    r'backbone\.norm1\.(weight|bias)': r'backbone.gn1.\1',
    _STAGE + r'conv([123])\.conv\.weight': r'backbone.layer\1.\2.conv\3.weight',
    _STAGE + r'norm([123])\.(weight|bias)': r'backbone.layer\1.\2.gn\3.\4',
    _STAGE + r'downsample\.([01])\.(weight|bias)': r'backbone.layer\1.\2.downsample.\3.\4',
}
HEAD_RULES = {
    r'dino_head\.mlp(\d+)\.0\.linear\.(weight|bias)': r'head.projectors.\1.layers.0.\2',
    r'dino_head\.mlp(\d+)\.([1-9]\d*)\.(weight|bias)': r'head.projectors.\1.layers.\2.\3',
    r'dino_head\.last_layer(\d+)\.weight_v': r'head.prototypes.\1.weight',
    r'dino_head\.last_layer(\d+)\.weight_g': r'head.prototypes.\1.gain',
}
RULES = VIT_RULES | SWIN_RULES | RESNET_RULES | HEAD_RULES  # no name means one thing here and another there
_WRAPPERS = {'module', '_fsdp_wrapped_module'}
_BRANCHES = ('teacher', 'student')


class Branches(NamedTuple):
    """What a public checkpoint holds.

    Args:
        teacher: Its state dict in the public layout.
        student: The same of the student; None if there is none.
        ignored: Names of everything else.
        named: Whether the checkpoint says whose weights it holds.
    """

    teacher: dict[str, Tensor] | None
    student: dict[str, Tensor] | None
    ignored: list[str]
    named: bool = True


class ImportReport(NamedTuple):
    """What :func:`import_public_checkpoint` did.

    Args:
        ignored: Entries of the public checkpoint that were left out; of a branch's weights, as ``teacher.NAME``.
        student_copied: Whether the student, for want of one, is a copy of the teacher.
        branch: The branch of the public checkpoint that has become the teacher, from which subnets are cut.
        named: Whether the checkpoint said that these weights are of that branch.
    """

    ignored: list[str]
    student_copied: bool
    branch: str = 'teacher'
    named: bool = True


def convert_public_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One branch's state dict, from the public code's layout to ours.

    ``backbone.*`` stays ``backbone.*``, ``dino_head.*`` becomes ``head.*``; prefixes of wrappers
    (``module.``, ``_fsdp_wrapped_module.``) are dropped. So are the norms of Swin's first three stages, which
    pre-training makes no use of.

    Args:
        state: Tensors by name, without ``teacher.`` or ``student.``.

    Raises:
        CheckpointError: If a name is unknown, its value is not a tensor, or two names become one.
    """
    converted: dict[str, Tensor] = {}
    origins: dict[str, str] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f'{name}: expected a tensor, found {type(value).__name__}')
        if _is_unused(name):
            continue
        new = _our_name(_unwrapped(name))
        if new is None:
            raise CheckpointError(f"{name}: not a weight of the public code's backbones or projection heads")
        if new in converted:
            raise CheckpointError(f'{origins[new]} and {name} are both {new}')
        origins[new] = name
        converted[new] = _our_value(new, value)
    return converted


def _is_unused(name: str) -> bool:
    return re.fullmatch(_UNUSED, _unwrapped(name)) is not None


def _our_name(name: str) -> str | None:
    for pattern, replacement in RULES.items():
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    return None


def _our_value(new: str, value: Tensor) -> Tensor:
    if new == 'backbone.mask_token' and value.dim() == 2:
        return value[:, None]
    if re.match(_SWIN_MERGING, new):  # four tokens one after another, here channel by channel
        return value.unflatten(-1, (4, -1)).transpose(-1, -2).flatten(-2)
    return value


def _unwrapped(name: str) -> str:
    return '.'.join(part for part in name.split('.') if part not in _WRAPPERS)


def find_branches(checkpoint: Mapping[str, Any], unnamed: str = 'teacher') -> Branches:
    """Teacher and student in a public checkpoint.

    They may be nested (``{'teacher': {..}, 'student': {..}}``), or tensors called ``teacher.*`` and
    ``student.*``, or the tensors of one branch alone; any of it may lie in ``'model'`` or ``'state_dict'``.

    Args:
        checkpoint: Its content.
        unnamed: The branch that tensors are of if they are of one that is not named. Default: ``'teacher'``.

    Raises:
        CheckpointError: If there is neither branch, or tensors belong to neither.
    """
    ignored: list[str] = []
    for box in ('state_dict', 'model'):
        if isinstance(checkpoint.get(box), Mapping):
            ignored += [name for name in checkpoint if name != box]
            checkpoint = checkpoint[box]
    found: dict[str, dict[str, Any]] = {}
    strangers = []
    for name, value in checkpoint.items():
        branch = _unwrapped(name).split('.')[0]
        if isinstance(value, Mapping) and name in _BRANCHES:
            found.setdefault(name, {}).update(value)
        elif not isinstance(value, Tensor):
            ignored.append(name)
        elif branch in _BRANCHES:
            # The name itself, less the branch: two that differ in wrappers only must not meet here.
            found.setdefault(branch, {})[name.replace(f'{branch}.', '', 1)] = value
        elif re.fullmatch(r'(dino|ibot_patch)_loss\w*(\.\w+)*\.center', _unwrapped(name)):
            ignored.append(name)  # running mean of the targets, which Sinkhorn-Knopp does not use
        else:
            strangers.append(name)
    named = bool(found)
    if strangers and not named:
        found[unnamed] = {name: checkpoint[name] for name in strangers}
    elif strangers:
        raise CheckpointError(f'expected tensors teacher.* and student.*, found besides {shorten(strangers)}')
    if not any(found.values()):
        raise CheckpointError(f'expected a teacher, found only {shorten(checkpoint)}')
    return Branches(found.get('teacher') or None, found.get('student') or None, ignored, named)


def import_public_checkpoint(
    config: str | os.PathLike | Config,
    path: str | os.PathLike,
    out: str | os.PathLike,
    branch: str | None = None,
) -> ImportReport:
    """Rewrite a checkpoint of the public code as one of poa_mm, for extraction, evaluation or ``load_from``.

    Args:
        config: Pre-training config whose ``model`` is the network that the checkpoint was trained with.
        path: Public checkpoint, ``.pth`` or ``.safetensors``; see :func:`find_branches`.
        out: Checkpoint to write. It appears complete or not at all.
        branch: The branch that becomes the teacher, from which subnets are cut: ``'teacher'`` or ``'student'``. Of a
            file that does not name its branches, the one that its weights are of. Default: None, the teacher, which
            the report says was not ``named`` if the file does not say so.

    Raises:
        CheckpointError: If the file cannot be read, is none of the public code's, lacks the branch, holds NaN or
            infinity, or does not fit the config.
        ValueError: If the branch is unknown.
    """
    if branch not in (None, *_BRANCHES):
        raise ValueError(f'branch {branch!r} is not one of {", ".join(_BRANCHES)}')
    check_out_file(out)
    chosen = branch or 'teacher'
    config = config if isinstance(config, Config) else Config.fromfile(config)
    model_config = config_of_model(config)
    branches = find_branches(read_checkpoint(path), chosen)
    if getattr(branches, chosen) is None:
        raise CheckpointError(f'{path}: expected a {chosen}, found only a {_BRANCHES[chosen == "teacher"]} (--branch)')
    ignored = list(branches.ignored)
    for name in _BRANCHES:
        ignored += [f'{name}.{key}' for key in getattr(branches, name) or () if _is_unused(key)]
    teacher = convert_public_state_dict(getattr(branches, chosen))
    student = teacher if branches.student is None else convert_public_state_dict(branches.student)

    model = build_poa(model_config)
    state = model.state_dict()
    for name, prefix, weights in (('teacher', 'teacher.', teacher), ('student', '', student)):
        expected = {
            key[len(prefix) :]: value
            for key, value in state.items()
            if key.startswith((f'{prefix}backbone.', f'{prefix}head.'))
        }
        check_state(expected, weights, f'{path}: {name}')
        check_finite(weights, f'{path}: {name}')
        # A copy of its own type: public checkpoints may be in half precision.
        state.update({prefix + key: value.to(expected[key].dtype).clone() for key, value in weights.items()})

    drop(state)  # a frozen teacher gets its weights where a run starts
    entry = describe_supernet(model_config)
    if model.deck is not None:
        entry['deck'] = model.deck.state_dict()
    meta = {
        'epoch': 0,
        'iter': 0,
        'cfg': config.pretty_text,
        'mmengine_version': mmengine.__version__,
        'poa_mm': __version__,
        'source': Path(path).name,
        'branch': chosen,
        'source_sha256': file_sha256(path),
    }
    checkpoint = {'meta': meta, 'state_dict': dict(state), 'message_hub': {}, SUPERNET_KEY: entry}
    out = Path(out)
    with StagedFiles(out.parent) as files:
        files.add(out.name, lambda temporary: save_to(temporary, checkpoint))
    return ImportReport(ignored, branches.student is None, chosen, branches.named or branch is not None)


def config_of_model(config: Config) -> dict[str, Any]:
    """The model of a config, with the data preprocessor that may stand beside it.

    Raises:
        CheckpointError: If the config has no model.
    """
    if not isinstance(config.get('model'), dict):
        raise CheckpointError('expected a pre-training config, found one without model')
    model_config = dict(config.model)
    if config.get('data_preprocessor') is not None:  # as mmengine's Runner does
        model_config.setdefault('data_preprocessor', config.data_preprocessor)
    return model_config


def build_poa(model_config: Mapping[str, Any]) -> POA:
    """The model of a pre-training config.

    Raises:
        CheckpointError: If it cannot be built, or is none of POA.
    """
    try:
        model = MODELS.build(dict(model_config))
    except Exception as error:  # whatever the classes that a config names may raise
        raise CheckpointError(f'cannot build the model of the config: {error}') from error
    if not isinstance(model, POA):
        raise CheckpointError(f'expected a config whose model is POA, found {type(model).__name__}')
    return model
