"""What subnets see in images, for the eye: colours of their patch features, attention of their class token."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.utils import to_2tuple
from mmengine.visualization import Visualizer
from mmpretrain.models import SelfSupDataPreprocessor
from mmpretrain.registry import MODELS
from scipy.optimize import linear_sum_assignment
from sklearn.decomposition import PCA
from torch import Tensor, nn
from torch.nn import functional as F

from poa_mm.checkpoint import check_state, load_teacher, read_checkpoint
from poa_mm.datasets import BadImageError, SafeLoadImageFromFile
from poa_mm.elastic import Subnet
from poa_mm.mistakes import check_out_file

from .report import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Network(NamedTuple):
    """A stock mmpretrain backbone to look at.

    Args:
        name: Stands above its maps.
        config: Of the backbone.
        state: Its weights.
        data_preprocessor: How its images are normalised: ``mean``, ``std`` and ``to_rgb``; all else is
            ignored.
    """

    name: str
    config: Mapping[str, Any]
    state: Mapping[str, Tensor]
    data_preprocessor: Mapping[str, Any]


class Maps(NamedTuple):
    """What one network makes of some images.

    Args:
        features: Patch features after the last block, ``(B, D, rows, columns)``.
        attention: Attention of the class token over the patches in the last block,
            ``(B, heads, rows, columns)``; None for a network without class token.
    """

    features: Tensor
    attention: Tensor | None


# --- networks --------------------------------------------------------------------------------


def subnet_networks(checkpoint: str | os.PathLike, subnets: Iterable[Subnet | str] | None = None) -> list[Network]:
    """Subnets of a supernet, each as the stock network that extraction would write.

    Args:
        checkpoint: Checkpoint of a pre-training run; nothing in it is executed.
        subnets: ``'384x12'``, aliases or :class:`Subnet`. Default: the smallest and the largest.

    Raises:
        CheckpointError: If the file is not a checkpoint of POA.
        ValueError: If a subnet is not in the checkpoint's space.
    """
    backbone, description = load_teacher(checkpoint)
    space = backbone.space
    chosen = {space.parse(name): str(name) for name in subnets or (space.smallest, space.largest)}
    return [
        Network(
            str(subnet) if name == str(subnet) else f'{name} ({subnet})',
            *backbone.extract(subnet),
            description.get('data_preprocessor') or {},
        )
        for subnet, name in chosen.items()
    ]


def read_network(path: str | os.PathLike) -> Network:
    """The network of a config that ``extract_subnet`` wrote, with the weights beside it.

    Args:
        path: An mmpretrain config whose ``model.backbone`` is initialised from a checkpoint file.

    Raises:
        CheckpointError: If the weights cannot be read.
        FileNotFoundError: If there is no such config.
        ValueError: If the config names no weights of a backbone.
    """
    cfg = Config.fromfile(path)
    config = dict((cfg.get('model') or {}).get('backbone') or {})
    weights = (config.pop('init_cfg', None) or {}).get('checkpoint')
    if weights is None:
        raise ValueError(f"{path} has no 'model.backbone.init_cfg.checkpoint', the weights of an extracted network")
    content = read_checkpoint(weights)
    return Network(Path(path).stem, config, content.get('state_dict', content), cfg.get('data_preprocessor') or {})


# --- images ----------------------------------------------------------------------------------


def read_images(paths: Iterable[str | os.PathLike], size: tuple[int, int]) -> np.ndarray:
    """Images of any size and kind, resized to cover ``size`` and cropped to its centre.

    Args:
        paths: Image files.
        size: Height and width in pixels.

    Returns:
        ``(B, H, W, 3)``, uint8 in the order blue, green, red.

    Raises:
        OSError: If a file cannot be opened.
        ValueError: If a file is not an image.
    """
    return np.stack([_cropped(_read_image(path), size) for path in paths])


def _read_image(path: str | os.PathLike) -> np.ndarray:
    with open(path, 'rb') as file:
        content = file.read()
    try:  # as pre-training decodes it
        return SafeLoadImageFromFile()(dict(img_path=str(path), img_bytes=content))['img']
    except BadImageError as error:
        raise ValueError(f'{path} is not an image that can be used: {error.reason}') from error


def _cropped(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    scale = max(wanted / found for wanted, found in zip(size, image.shape))
    height, width = (max(wanted, round(found * scale)) for wanted, found in zip(size, image.shape))
    image = mmcv.imresize(image, (width, height), interpolation='bicubic', backend='pillow')
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return image[top : top + size[0], left : left + size[1]]


def _normalised(network: Network, images: np.ndarray) -> Tensor:
    """What the network takes, ``(B, C, H, W)``."""
    channels = network.config.get('in_channels', 3)
    if channels == 1:
        images = np.stack([mmcv.bgr2gray(image, keepdim=True) for image in images])
    elif channels != 3:
        raise ValueError(f'{network.name} takes images of {channels} channels; only 1 and 3 can be shown')
    used = ('mean', 'std', 'to_rgb', 'bgr_to_rgb', 'rgb_to_bgr')  # any of the last three swaps the channels
    preprocessor = SelfSupDataPreprocessor(**{k: v for k, v in network.data_preprocessor.items() if k in used})
    batch = torch.from_numpy(images).permute(0, 3, 1, 2)
    return preprocessor({'inputs': batch, 'data_samples': None})['inputs']


# --- maps ------------------------------------------------------------------------------------


@torch.no_grad()
def compute_maps(network: Network, images: np.ndarray) -> Maps:
    """Patch features and, of a network with class token, its attention over the patches.

    Args:
        network: Any stock backbone. If its outputs can be ``'raw'`` tokens, they are a vision
            transformer's; else its last output is a feature map.
        images: ``(B, H, W, 3)``, as :func:`read_images` gives them.

    Returns:
        The maps, on the CPU.

    Raises:
        CheckpointError: If the weights are not those of the network.
        ValueError: If the network cannot be built, the image size is not a multiple of its patches or
            its features are not finite.
    """
    model = _build(network)
    outputs = model(_normalised(network, images).to(get_device()))
    if _gives_tokens(network):
        maps = _maps_of_tokens(network.name, model, *outputs, image_size=images.shape[1:3])
    else:
        maps = Maps(outputs[-1].cpu(), None)
    if not maps.features.isfinite().all():
        raise ValueError(f'features of {network.name} are not finite: the weights have diverged')
    return maps


def class_attention(block: nn.Module, x: Tensor) -> Tensor:
    """Attention of the class token in a pre-norm transformer block, ``softmax(q k^T / sqrt(head_dim))``.

    Args:
        block: mmpretrain's ``TransformerEncoderLayer``.
        x: Tokens that enter the block, the class token first, ``(B, 1 + N, D)``.

    Returns:
        For each head what the class token takes from every token, itself the first: ``(B, heads, 1 + N)``,
        which sums to 1.
    """
    qkv = block.attn.qkv(block.ln1(x)).unflatten(-1, (3, block.attn.num_heads, -1))  # (B, 1 + N, 3, heads, head_dim)
    query, key, _ = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, 1 + N, head_dim)
    scores = query[:, :, :1] @ key.transpose(-2, -1) / query.shape[-1] ** 0.5  # (B, heads, 1, 1 + N)
    return scores.softmax(dim=-1).squeeze(2)


def _gives_tokens(network: Network) -> bool:
    return 'raw' in getattr(MODELS.get(network.config['type']), 'OUT_TYPES', ())


def _build(network: Network) -> nn.Module:
    config = dict(network.config)
    try:
        if _gives_tokens(network):
            config.update(out_type='raw', out_indices=[-2, -1])  # what enters and what leaves the last block
        model = MODELS.build(config)
    except Exception as error:  # whatever the class raises for a config that it does not know
        raise ValueError(f'cannot build the backbone of {network.name}: {error}') from error
    check_state(model.state_dict(), network.state, f'weights of {network.name}')
    model.load_state_dict(network.state)
    model.eval()  # mmpretrain's returns None
    return model.to(get_device())


def _maps_of_tokens(name: str, model: nn.Module, before: Tensor, after: Tensor, image_size: tuple[int, int]) -> Maps:
    """Tokens ``(B, 1 + N, D)`` before and after the last block as maps."""
    patch_size = model.patch_embed.projection.stride
    if any(size % patch for size, patch in zip(image_size, patch_size)):
        raise ValueError(
            f'image size {_by(image_size)} is not a multiple of the patches of {name}, {_by(patch_size)} pixels'
        )
    grid = tuple(size // patch for size, patch in zip(image_size, patch_size))
    extra = model.num_extra_tokens
    features = after[:, extra:].transpose(1, 2).unflatten(-1, grid)
    if not model.with_cls_token:
        return Maps(features.cpu(), None)
    attention = class_attention(model.layers[-1], before)[..., extra:].unflatten(-1, grid)
    return Maps(features.cpu(), attention.cpu())


def _by(size: Sequence[int]) -> str:
    return 'x'.join(map(str, size))


# --- colours ---------------------------------------------------------------------------------


def pca_colours(features: Iterable[Tensor]) -> list[np.ndarray]:
    """The first three principal components of patch features as red, green and blue.

    One PCA for each network, over the patches of all images, so that a colour means the same in all of
    them. Between networks it means nothing by itself: order and sign of components are arbitrary. The
    components of every network after the first are therefore paired with the first network's such that
    the absolute correlations over the patches are largest in sum, and flipped to correlate positively.
    The range from the 1st to the 99th percentile of each component becomes [0, 1]; the rest is clipped.

    Args:
        features: ``(B, D, rows, columns)`` of each network, for the same images; the grids may differ.

    Returns:
        Colours of each network in [0, 1], ``(B, rows, columns, 3)``.

    Raises:
        ValueError: If there are fewer than four patches.
    """
    components = [_principal_components(feature) for feature in features]
    aligned = [_aligned(component, components[0]) for component in components]
    return [_scaled(component.permute(0, 2, 3, 1).numpy()) for component in aligned]


def _principal_components(features: Tensor) -> Tensor:
    """``(B, D, rows, columns)`` to centred ``(B, 3, rows, columns)``."""
    rows = features.movedim(1, -1)  # (B, rows, columns, D)
    patches = rows.flatten(0, 2).double().numpy()
    if len(patches) < 4:
        raise ValueError(f'a PCA to three colours needs at least 4 patches, got {len(patches)}: use larger images')
    components = PCA(3, random_state=0).fit_transform(patches)
    return torch.from_numpy(components).unflatten(0, rows.shape[:3]).movedim(-1, 1)


def _aligned(components: Tensor, reference: Tensor) -> Tensor:
    """``components`` in the order and with the signs that resemble ``reference``, ``(B, 3, rows, columns)`` both."""
    resized = F.interpolate(components, reference.shape[2:], mode='bilinear')
    # Both are centred, so these are the correlations.
    units = (F.normalize(x.transpose(0, 1).flatten(1)) for x in (reference, resized))  # each (3, patches)
    correlation = torch.einsum('ip,jp->ij', *units)
    rows, order = linear_sum_assignment(correlation.abs().numpy(), maximize=True)
    signs = torch.where(correlation[rows, order] < 0, -1.0, 1.0)
    return components[:, order] * signs.view(3, 1, 1)


def _scaled(components: np.ndarray) -> np.ndarray:
    low, high = np.percentile(components, (1, 99), axis=(0, 1, 2))
    return np.clip((components - low) / np.maximum(high - low, np.finfo(np.float32).tiny), 0, 1)


# --- the picture -----------------------------------------------------------------------------


def save_feature_maps(
    networks: Sequence[Network],
    images: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    image_size: int | tuple[int, int] | None = None,
) -> Path:
    """Write a picture of what networks see in images: a row for each image, two columns for each network.

    Args:
        networks: What to compare; their weights are on the CPU.
        images: Image files.
        out: PNG file, written as a whole or not at all; its folder is made if it is missing.
        image_size: Pixels that the images are resized and cropped to. Default: what the first network was
            made for.

    Returns:
        Path of the picture.

    Raises:
        CheckpointError: If weights are not those of their network.
        OSError: If an image cannot be opened.
        ValueError: If there is no network or image, a file is not an image, the image size is not a
            multiple of a network's patches, or ``out`` is not a PNG file.
    """
    out = Path(out)
    if out.suffix.lower() != '.png':
        raise ValueError(f'{out} is not a .png file')
    check_out_file(out)
    if not networks or not images:
        raise ValueError('nothing to show: needs a network and an image at least')
    size = to_2tuple(networks[0].config.get('img_size', 224) if image_size is None else image_size)
    if min(size) < 1:
        raise ValueError(f'image size {_by(size)} is not positive')
    pixels = read_images(images, size)
    maps = [compute_maps(network, pixels) for network in networks]
    figure = draw_feature_maps([Path(path).name for path in images], pixels, [n.name for n in networks], maps)
    out.parent.mkdir(parents=True, exist_ok=True)
    return write_whole(out, lambda path: figure.savefig(path, format='png', dpi=200))


def draw_feature_maps(
    image_names: Sequence[str], images: np.ndarray, network_names: Sequence[str], maps: Sequence[Maps]
) -> Figure:
    """A row for each image: the image, then of each network the PCA and, where there is one, the attention.

    The attention is the mean over heads, laid over the image, from dark blue where it is least in the image
    to dark red where it is largest.

    Args:
        image_names: Stand beside the rows.
        images: ``(B, H, W, 3)`` in the order blue, green, red.
        network_names: Stand above the columns.
        maps: Of each network.
    """
    # Figure by itself and not pyplot: no display, no global state.
    from matplotlib.figure import Figure

    images = np.ascontiguousarray(images[..., ::-1])  # red, green, blue
    columns = [('\nimage', images)]
    for name, colours, (_, attention) in zip(network_names, pca_colours(m.features for m in maps), maps):
        columns.append((f'{name}\nPCA', colours))
        if attention is not None:
            columns.append(('\nattention', [_overlaid(*pair) for pair in zip(images, attention)]))

    height = 2.2 * images.shape[1] / images.shape[2]
    figure = Figure(figsize=(2.2 * len(columns) + 0.3, height * len(images) + 0.5), layout='constrained')
    cells = figure.subplots(len(images), len(columns), squeeze=False)
    for axes in cells.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for column, (title, pictures) in enumerate(columns):
        # From the left, so that a long name has the room of both columns.
        cells[0, column].set_title(title, loc='left', fontsize=10)
        for axes, picture in zip(cells[:, column], pictures):
            axes.imshow(picture, interpolation='nearest', extent=(0, images.shape[2], images.shape[1], 0))
    for axes, name in zip(cells[:, 0], image_names):
        axes.set_ylabel(name if len(name) <= 26 else f'{name[:12]}…{name[-13:]}', fontsize=9)
    return figure


def _overlaid(image: np.ndarray, attention: Tensor) -> np.ndarray:
    heads = F.interpolate(attention[None], image.shape[:2])[0]  # nearest: patches stay visible
    return Visualizer.draw_featmap(heads, image, channel_reduction='squeeze_mean', alpha=0.5)
