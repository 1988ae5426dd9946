"""A teacher that stays what it is: the network that a run starts from, or another one."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from poa_mm.checkpoint import TEACHER, CheckpointError, check_state
from poa_mm.elastic import ElasticLinear

from ..backbones import ElasticVisionTransformer
from ..backbones.elastic_backbone import Features

SOURCE = 'source'
NAME = 'frozen_teacher'
OPTIONS = ('feature_weight', 'patch_size')
RESIZED = re.compile(r'.*(pos_embed|relative_position_bias_table)')  # by the backbones themselves, when they are loaded


class FrozenTeacher(BaseModule):
    """A backbone without gradient, always in evaluation mode. Ours, not the paper's.

    Where its weights are from:

    - Of ``'source'``, it is the supernet at full size, with the weights of ``teacher`` in the file that a run starts
      from (``load_from``).
    - Another network is loaded from the file that its ``init_cfg`` names.

    A checkpoint of the run holds it once, below ``frozen_teacher.``, and a run that is resumed takes it from there.

    Args:
        backbone: The network: an elastic backbone, or any of mmpretrain that gives tokens or feature maps.
        is_source: Whether it is the network that the run starts from.
        feature_weight: Weight of the loss between its features and the students'. Default: 0.
        patch_size: Pixels of its patches, where they are others than those of the supernet: images are resized for it,
            bicubic, until it has the patches of the supernet. Default: None, images as they are.

    Attributes:
        loaded: Whether it has its weights, 0 or 1. A tensor, for a checkpoint to say it.
    """

    def __init__(
        self, backbone: nn.Module, is_source: bool, feature_weight: float = 0.0, patch_size: int | None = None
    ):
        super().__init__()
        self.backbone = backbone
        self.is_source = is_source
        self.feature_weight = feature_weight
        self.patch_size = patch_size
        self.register_buffer('loaded', torch.zeros((), dtype=torch.long))
        self._checked = False
        self.requires_grad_(False)
        super().train(False)

    def init_weights(self) -> None:
        """Load the file that ``init_cfg`` of the backbone names; the source has to wait for ``load_from``."""
        if not self.is_source:
            super().init_weights()
            self.loaded.fill_(1)

    def train(self, mode: bool = True) -> FrozenTeacher:
        """Stay in evaluation mode."""
        super().train(False)
        return self

    def check_loaded(self) -> None:
        """Check that there are weights; the device is asked once.

        Raises:
            ValueError: If there are none.
        """
        if not self._checked and not self.loaded.item():
            raise ValueError(
                'the frozen teacher has no weights: '
                + ('load_from has to name a checkpoint of POA' if self.is_source else 'init_weights() loads them')
            )
        self._checked = True

    @torch.no_grad()
    def extract_features(self, images: Tensor, grid: tuple[int, int]) -> Features:
        """Class and patch features of images ``(B, C, H, W)``, the patches on the ``grid`` of the supernet's masks.

        Raises:
            ValueError: As :func:`features_of`.
        """
        return features_of(self.backbone, images, grid, self.patch_size)

    def channels(self, student: nn.Module) -> int:
        """Channels of its features for images of the size that an elastic backbone is made for, without computing them.

        Raises:
            ValueError: If it cannot take these images, or its patches are not those of the backbone.
        """
        grid = student.mask_grid(student.img_size)
        size = student.img_size if self.patch_size is None else [self.patch_size * number for number in grid]
        images = torch.empty(1, student.in_channels, *size, device='meta')
        try:
            with torch.no_grad():
                found = features_of(_without_weights(self.backbone), images, grid)
        except (RuntimeError, NotImplementedError, AssertionError) as error:
            raise ValueError(
                f'the frozen teacher ({type(self.backbone).__name__}) cannot take images of {student.in_channels} '
                f'channels and {" x ".join(map(str, size))} pixels, those of the supernet: {str(error).splitlines()[0]}'
            ) from error
        return found.cls.shape[-1]


def build_frozen_teacher(config: str | Mapping[str, Any] | None, student: nn.Module) -> FrozenTeacher | None:
    """The frozen teacher of a config.

    Args:
        config: ``'source'``; or ``backbone``, the config of a network with ``init_cfg=dict(type='Pretrained', ..)``,
            ``feature_weight`` (default: 1) and ``patch_size`` (default: None). None for no such teacher.
        student: The elastic backbone.

    Raises:
        ValueError: If the config is none of these, or names no weights.
    """
    if config is None:
        return None
    if config == SOURCE:
        return FrozenTeacher(copy.deepcopy(student), is_source=True)
    if not isinstance(config, Mapping) or not {'backbone'} <= set(config) <= {'backbone', *OPTIONS}:
        raise ValueError(
            f'frozen_teacher is {SOURCE!r}, the network that the run starts from, or a dict of another one with '
            f'backbone and, if need be, {" and ".join(OPTIONS)}; got {config!r}'
        )
    weight, patch_size = config.get('feature_weight', 1.0), config.get('patch_size')
    if not (isinstance(weight, (int, float)) and math.isfinite(weight) and weight >= 0):
        raise ValueError(f'frozen_teacher.feature_weight {weight!r} is not a number of 0 or more')
    if patch_size is not None and (not isinstance(patch_size, int) or patch_size < 1):
        raise ValueError(f'frozen_teacher.patch_size {patch_size!r} is not a number of pixels')
    backbone = config['backbone']
    init_cfg = backbone.get('init_cfg') if isinstance(backbone, Mapping) else None
    if not isinstance(init_cfg, Mapping) or init_cfg.get('type') != 'Pretrained' or not init_cfg.get('checkpoint'):
        raise ValueError(
            "frozen_teacher.backbone needs init_cfg=dict(type='Pretrained', checkpoint=FILE), the weights that it "
            f'teaches with; got {init_cfg!r}'
        )
    return FrozenTeacher(MODELS.build(dict(backbone)), False, float(weight), patch_size)


def _without_weights(network: nn.Module) -> nn.Module:
    """A copy on the device ``meta``, which computes shapes only. The network itself may keep what it has computed."""
    params = {id(param): nn.Parameter(torch.empty_like(param, device='meta')) for param in network.parameters()}
    return copy.deepcopy(network, params).to('meta')


def features_of(network: nn.Module, images: Tensor, grid: tuple[int, int], patch_size: int | None = None) -> Features:
    """Class and patch features of images, by an elastic backbone or any of mmpretrain.

    A network that gives tokens has to have the patches of ``grid``. The cells of a feature map are repeated where the
    grid is finer by whole numbers; the class feature is the mean of the map.

    Args:
        network: The backbone. The ``out_type`` of a ViT becomes ``'raw'``.
        images: ``(B, C, H, W)``.
        grid: Rows and columns.
        patch_size: As of :class:`FrozenTeacher`. Default: None.

    Returns:
        ``(B, D)`` and ``(B, rows * columns, D)``.

    Raises:
        ValueError: If it gives neither, or other patches.
    """
    name = type(network).__name__
    if patch_size is not None:
        size = [patch_size * number for number in grid]
        images = F.interpolate(images, size, mode='bicubic', antialias=True)
    if hasattr(network, 'extract_features'):
        features = network.extract_features(images)
    elif hasattr(network, 'num_extra_tokens') and hasattr(network, 'out_type'):
        features = ElasticVisionTransformer.plain_features(network, images)
    else:
        outputs = network(images)
        found = outputs[-1] if isinstance(outputs, (list, tuple)) else outputs
        if not isinstance(found, Tensor) or found.dim() != 4:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f'the frozen teacher ({name}) has to give tokens or a feature map (B, D, rows, columns); got {shape}'
            )
        if grid[0] % found.shape[2] or grid[1] % found.shape[3]:
            raise ValueError(
                f'the feature map of the frozen teacher ({name}) has {found.shape[2]} x {found.shape[3]} cells, which '
                f'do not divide the {grid[0]} x {grid[1]} patches of the supernet'
            )
        cells = F.interpolate(found, size=grid, mode='nearest')
        features = Features(cls=found.mean(dim=(2, 3)), patch=cells.flatten(2).transpose(1, 2))
    if features.patch.shape[1] != grid[0] * grid[1]:
        raise ValueError(
            f'the frozen teacher ({name}) sees {features.patch.shape[1]} patches in an image of {images.shape[-2]} x '
            f'{images.shape[-1]} pixels, the supernet {grid[0]} x {grid[1]}; with frozen_teacher.patch_size, the '
            'pixels of a patch of the teacher, images are resized for it'
        )
    return features


class FeatureMap(ElasticLinear):
    """Linear map of each token from the students' features to a teacher's, whatever the width of the subnet.

    Args:
        in_channels: Of the supernet's features at full width.
        out_channels: Of the teacher's.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, elastic_out=False)


# --- where the weights are from ---------------------------------------------------------------


def complete(model: nn.Module, state: MutableMapping[str, Tensor], prefix: str = '', *_: Any) -> None:
    """Put into a state dict the frozen teacher that it lacks: its own ``teacher``, or what a file has given already.

    A hook that runs before ``model`` loads ``state``. One that holds a frozen teacher with weights stays as it is.

    Raises:
        CheckpointError: If the source is asked for, and its weights are not those of the network.
    """
    teacher = model.frozen_teacher
    start = f'{prefix}{NAME}.'
    if (loaded := state.get(f'{start}loaded')) is not None and int(loaded):
        return
    own = teacher.state_dict()
    if teacher.is_source:
        expected = {key.removeprefix('backbone.'): value for key, value in own.items() if key != 'loaded'}
        found = {
            key.removeprefix(f'{prefix}{TEACHER}'): value
            for key, value in state.items()
            if key.startswith(f'{prefix}{TEACHER}')
        }
        if not found:
            raise CheckpointError(f'the weights to start from hold no {TEACHER}*, which would be the frozen teacher')
        shapes = {key: found.get(key, value) if RESIZED.fullmatch(key) else value for key, value in expected.items()}
        check_state(shapes, found, f'{TEACHER}* of the weights to start from')
        own = {**{f'backbone.{key}': value for key, value in found.items()}, 'loaded': torch.ones_like(own['loaded'])}
    state.update({f'{start}{key}': value for key, value in own.items()})


def drop(state: MutableMapping[str, Tensor]) -> None:
    """Take the frozen teacher of an earlier run out of a state dict."""
    for key in [key for key in state if key.startswith(f'{NAME}.')]:
        del state[key]


def check_same(teacher: FrozenTeacher, state: Mapping[str, Tensor]) -> None:
    """Check that another network has the weights that a state dict holds of it.

    Raises:
        CheckpointError: If it has not; names the first weight.
    """
    if teacher.is_source or not teacher.loaded.item():
        return
    for key, value in teacher.state_dict().items():
        stored = state.get(f'{NAME}.{key}')
        if stored is not None and not stored.is_meta and not torch.equal(value.cpu(), stored.cpu()):
            raise CheckpointError(
                f'the frozen teacher that init_cfg names is not the one that the run began with: {key} differs'
            )
