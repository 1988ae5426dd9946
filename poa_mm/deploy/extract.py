"""Cutting subnets out of a pre-trained teacher, into files that stock mmpretrain, mmdet and mmseg read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from poa_mm.checkpoint import CheckpointError, file_sha256, load_teacher, metadata_of
from poa_mm.elastic import Subnet
from poa_mm.mistakes import check_out_dir
from poa_mm.version import __version__

from .config_text import bands_of_folders, downstream_config, feature_config
from .downstream import classifier, detector, downstream_backbone, fine_tuning, segmentor
from .manifest import MANIFEST, add_manifest, read_manifest
from .staged_files import StagedFiles, save_to

FORMATS = ('safetensors', 'pth')
TOLERANCE = 1e-4  # largest difference from the supernet's features, which is float rounding

CONFIGS = Path(__file__).parents[1] / '.mim' / 'configs'


class Library(NamedTuple):
    """What a library's config for fine-tuning consists of.

    Args:
        base: The shipped config that it inherits from, within ``CONFIGS``.
        task: Function of :mod:`~poa_mm.deploy.downstream` that fits the model to a backbone.
        preprocessor: Where in the config the normalisation goes, as Python.
        to_rgb: What its preprocessor calls the order of channels.
    """

    base: str
    task: Callable[[Mapping[str, Any]], dict[str, Any]]
    preprocessor: str = "model['data_preprocessor']"
    to_rgb: str = 'bgr_to_rgb'


LIBRARIES = {
    'mmdet': Library('detection/_base_/cascade-mask-rcnn_fpn_1x_coco.py', detector),
    'mmseg': Library('segmentation/_base_/upernet_160k_ade20k-512x512.py', segmentor),
    'mmpretrain': Library('probe/_base_/finetune_in1k.py', classifier, 'data_preprocessor', 'to_rgb'),
}


class SubnetRow(NamedTuple):
    """One line of a table of subnets.

    Args:
        subnet: The subnet.
        aliases: Its other names.
        params: Number of parameters.
        flops: Floating-point operations for one image of the pre-training size; a multiply-add is 2.
    """

    subnet: Subnet
    aliases: tuple[str, ...]
    params: int
    flops: int


def list_subnets(checkpoint: str | os.PathLike) -> list[SubnetRow]:
    """All subnets in a checkpoint, from the smallest to the largest.

    Raises:
        CheckpointError: If the file is not a checkpoint of POA.
    """
    backbone, _ = load_teacher(checkpoint)
    space = backbone.space
    return [
        SubnetRow(
            subnet, tuple(name for name, named in space.aliases.items() if named == subnet), *backbone.cost(subnet)
        )
        for subnet in space
    ]


def extract_subnets(
    checkpoint: str | os.PathLike,
    subnets: str | Subnet | Iterable[Subnet | str] | None,
    out_dir: str | os.PathLike,
    format: str = 'safetensors',
    verify: bool = True,
    libraries: str | Iterable[str] = (),
    progress: Callable[[list[Subnet]], Iterable[Subnet]] = iter,
) -> list[dict[str, Any]]:
    """Write subnets of the teacher in ``checkpoint`` as weights and configs of plain mmpretrain networks.

    ``poa_<W>x<D>.<format>`` holds the weights under the names of mmpretrain's backbone,
    ``poa_<W>x<D>.py`` is a config that loads them from beside it, and ``poa_<W>x<D>_<library>.py`` one that
    fine-tunes them; ``manifest.json`` lists what is in the folder. All of them appear together, when
    everything has succeeded, or none does. Weights and configs of the same name are overwritten.

    Args:
        checkpoint: Checkpoint of a pre-training run or of ``import_public_checkpoint``.
        subnets: What to extract, one or more: ``'384x12'``, aliases or :class:`Subnet`; None for all subnets.
        out_dir: Folder to write to, made if it is missing.
        format: ``'safetensors'``, or ``'pth'`` (``{'state_dict': ..., 'meta': ...}`` of ``torch.save``),
            whose config does not import poa_mm unless the network is none of mmpretrain's own.
            Default: ``'safetensors'``.
        verify: Compare each subnet, in a stock network, with the supernet. Default: True.
        libraries: Those of ``LIBRARIES`` to write a config for that is ready to train: Cascade Mask R-CNN on
            COCO (mmdet), UperNet on ADE20K (mmseg), classification of ImageNet (mmpretrain). Default: none.
        progress: Wraps the list of subnets to iterate over it, such as ``rich.progress.track``.
            Default: shows nothing.

    Returns:
        The manifest's entries of ``subnets``: ``subnet``, ``file``, ``format``, ``source``,
        ``source_sha256``, ``params``, ``flops``, ``image_size``, ``max_abs_diff`` (None if not verified),
        ``configs`` (file names) and ``poa_mm``, the version.

    Raises:
        CheckpointError: If the file is not a checkpoint of POA, a subnet does not compute what the
            supernet does, or the folder holds subnets of another checkpoint.
        FileNotFoundError: If poa_mm is installed without the configs that a library's inherits from.
        OSError: If ``out_dir`` cannot be written to.
        ValueError: If the format or a library is unknown, there is no subnet to extract, one is not in the
            checkpoint's space, a library cannot use it, or the folder holds it in the other format.
    """
    if format not in FORMATS:
        raise ValueError(f'format {format!r} is not one of {", ".join(FORMATS)}')
    libraries = [libraries] if isinstance(libraries, str) else list(dict.fromkeys(libraries))
    _check_libraries(libraries)
    if subnets is not None and not (subnets := [subnets] if isinstance(subnets, (str, Subnet)) else list(subnets)):
        raise ValueError("no subnet to extract; name some, such as '384x12', or None for all")
    check_out_dir(out_dir)
    backbone, description = load_teacher(checkpoint)
    if backbone.in_channels != 3 and (colour := [name for name in libraries if name != 'mmpretrain']):
        raise ValueError(
            f'configs for {", ".join(colour)} read colour images of 3 channels, '
            f'but {checkpoint} is of a supernet for {backbone.in_channels}'
        )
    space = backbone.space
    chosen = list(dict.fromkeys(map(space.parse, space if subnets is None else subnets)))
    normalisation = normalisation_of(description)
    origin = {'source': Path(checkpoint).name, 'source_sha256': file_sha256(checkpoint), 'poa_mm': __version__}
    manifest = read_manifest(out_dir, origin)
    _check_formats(manifest, chosen, format, out_dir)

    entries = []
    with StagedFiles(out_dir) as files:
        for subnet in progress(chosen):
            config, state = backbone.extract(subnet)
            difference = compare_with_supernet(backbone, subnet, config, state) if verify else None
            cost = backbone.cost(subnet)
            entry = dict(
                subnet=str(subnet),
                file=f'poa_{subnet}.{format}',
                format=format,
                **origin,
                params=cost.params,
                flops=cost.flops,
                image_size=list(backbone.img_size),
                max_abs_diff=difference,
                configs=[f'poa_{subnet}.py', *(f'poa_{subnet}_{library}.py' for library in libraries)],
            )
            entries.append(entry)
            texts = _config_texts(backbone, subnet, config, entry, libraries, normalisation)
            meta = {'subnet': entry['subnet'], **origin, **metadata_of(config, normalisation)}
            files.add(entry['file'], lambda path: _write_weights(path, format, state, meta))  # noqa: B023
            for name, text in zip(entry['configs'], texts):
                files.add(name, lambda path: path.write_text(text, encoding='utf-8'))  # noqa: B023
        add_manifest(files, manifest, entries)
    return entries


@torch.no_grad()
def compare_with_supernet(
    backbone: nn.Module, subnet: Subnet, config: Mapping[str, Any], state: Mapping[str, Tensor]
) -> float:
    """Largest difference between what a stock network and the supernet make of two random images.

    Args:
        backbone: The supernet.
        subnet: The subnet that was cut out.
        config: Config of the stock network.
        state: Its weights.

    Raises:
        CheckpointError: If it is not within ``TOLERANCE``.
    """
    network = MODELS.build(config)
    network.eval()  # mmpretrain's returns None
    network.load_state_dict(state)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, backbone.in_channels, *backbone.img_size, generator=generator)
    pairs = zip(backbone.plain_features(network, images), backbone.extract_features(images, subnet))
    difference = torch.stack([(found - expected).abs().max() for found, expected in pairs]).max().item()
    if not difference <= TOLERANCE:  # NaN is none either
        raise CheckpointError(
            f'subnet {subnet} differs by {difference:.2g} from the supernet, more than {TOLERANCE}; nothing was written'
        )
    return difference


def _write_weights(path: Path, format: str, state: Mapping[str, Tensor], meta: dict[str, str]) -> None:
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    if format == 'safetensors':
        from safetensors.torch import save

        path.write_bytes(save(state, metadata={'format': 'pt', **meta}))  # whose errors are the system's
    else:
        save_to(path, {'state_dict': state, 'meta': meta})


def _check_libraries(libraries: Iterable[str]) -> None:
    for name in libraries:
        if name not in LIBRARIES:
            raise ValueError(f'library {name!r} is not one of {", ".join(LIBRARIES)}')
        if not (base := CONFIGS / LIBRARIES[name].base).is_file():
            raise FileNotFoundError(
                f'{base}: no such file, which a config for {name} inherits from; '
                'install poa_mm from a checkout with pip install -e'
            )


def _check_formats(
    manifest: Mapping[str, Mapping[str, Any]], chosen: Iterable[Subnet], format: str, out_dir: str | os.PathLike
) -> None:
    """A config loads one file. It must not change, without a word, which one it is."""
    names = {str(subnet) for subnet in chosen}
    others = [entry for entry in manifest.values() if entry['format'] in FORMATS and entry['format'] != format]
    if there := [entry['file'] for entry in others if entry['subnet'] in names]:
        raise ValueError(
            f'{out_dir} holds {", ".join(there[:3])}{" .." if len(there) > 3 else ""}, which the configs there load; '
            f'they would load the .{format} files instead: choose another folder, or remove those files and '
            f'{Path(out_dir) / MANIFEST}'
        )


def normalisation_of(description: Mapping[str, Any]) -> dict[str, Any]:
    """``mean``, ``std`` and ``to_rgb`` as ImageClassifier's preprocessor takes them; ``value_range`` of bands."""
    data_preprocessor = description.get('data_preprocessor') or {}
    # SelfSupDataPreprocessor takes any of these for the order of channels.
    to_rgb = any(data_preprocessor.get(key) for key in ('to_rgb', 'bgr_to_rgb', 'rgb_to_bgr'))
    bands = {key: data_preprocessor[key] for key in ('value_range',) if data_preprocessor.get(key) is not None}
    return dict(mean=data_preprocessor.get('mean'), std=data_preprocessor.get('std'), to_rgb=to_rgb, **bands)


def _config_texts(
    backbone: nn.Module,
    subnet: Subnet,
    config: Mapping[str, Any],
    entry: Mapping[str, Any],
    libraries: Iterable[str],
    normalisation: Mapping[str, Any],
) -> list[str]:
    """Texts of the configs that ``entry`` names.

    Raises:
        CheckpointError: If a value that the checkpoint describes its network with cannot be written into a config.
        ValueError: If a library's task cannot use the subnet.
    """
    own_class = MODELS.get(config['type']).__module__.startswith('poa_mm.')
    channels = backbone.channels_of(subnet)
    try:
        texts = [feature_config(entry, config, backbone.neck, channels, normalisation, own_class)]
        return texts + [_downstream_text(library, entry, config, normalisation) for library in libraries]
    except TypeError as error:
        raise CheckpointError(f'{entry["source"]}: {error}') from error


def _downstream_text(
    library: str, entry: Mapping[str, Any], backbone: Mapping[str, Any], normalisation: Mapping[str, Any]
) -> str:
    """The config beside the weights that trains the subnet in a library.

    Raises:
        ValueError: If the library's task cannot use it.
    """
    base, task, preprocessor, to_rgb = LIBRARIES[library]
    backbone = downstream_backbone(backbone)
    drop_path_rate, layer_decay_rate = fine_tuning(backbone)
    backbone['drop_path_rate'] = drop_path_rate
    task(backbone)  # would fail in the config otherwise
    normalisation = {to_rgb if key == 'to_rgb' else key: value for key, value in normalisation.items()}
    value_range, channels, data = normalisation.pop('value_range', None), backbone.get('in_channels', 3), ''
    if library == 'mmpretrain' and (value_range is not None or channels != 3):
        data = bands_of_folders(entry['image_size'], channels, value_range)
    return downstream_config(
        entry, library, base, task.__name__, backbone, preprocessor, normalisation, layer_decay_rate, data
    )
