"""A subnet as the stock network that it is, out of a supernet's checkpoint or of extracted files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.utils import to_2tuple
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from poa_mm.checkpoint import (
    CheckpointError,
    Resizing,
    check_finite,
    check_state,
    compare,
    description_of,
    file_sha256,
    load_teacher,
    read_checkpoint,
)
from poa_mm.elastic import Subnet
from poa_mm.engine.launch import read_file
from poa_mm.evaluation.backbone import FAMILIES, name_of


class StockNetwork(NamedTuple):
    """A stock mmpretrain backbone.

    Args:
        subnet: The subnet that it is.
        config: Of the backbone, for mmpretrain's registry.
        state: Its weights.
        data_preprocessor: How its images are normalised: ``mean``, ``std`` and the order of channels.
        image_size: Height and width in pixels of the pre-training.
        source: Name of the supernet's checkpoint.
        source_sha256: SHA-256 of that file.
    """

    subnet: Subnet
    config: Mapping[str, Any]
    state: Mapping[str, Tensor]
    data_preprocessor: Mapping[str, Any]
    image_size: tuple[int, int]
    source: str
    source_sha256: str

    def build(self) -> nn.Module:
        """The network with its weights, in evaluation mode.

        Raises:
            CheckpointError: If the weights do not fit the network.
        """
        network = MODELS.build(dict(self.config))
        check_state(network.state_dict(), self.state, f'{self.source}: subnet {self.subnet}')
        network.load_state_dict(self.state)
        network.eval()  # mmpretrain's returns None
        return network


def open_networks(
    checkpoint: str | os.PathLike, subnets: Iterable[Subnet | str] | None = None
) -> Iterator[StockNetwork]:
    """Subnets one by one, so that only one at a time is in memory beside the supernet.

    Args:
        checkpoint: Checkpoint of a supernet, or the config ``poa_*.py`` of an extracted subnet.
        subnets: ``'384x12'``, aliases or :class:`Subnet`. Default: None, all that there are.

    Raises:
        CheckpointError: If the file cannot be read or is none of POA's.
        ValueError: If a subnet is not in it. All of them are looked up before the first is given.
    """
    if is_extracted(checkpoint):
        network = _read_extracted(Path(checkpoint))
        for wanted in subnets or ():
            if Subnet.parse(wanted) != network.subnet:
                raise ValueError(f'{checkpoint} holds subnet {network.subnet}, not {wanted}')
        yield network
        return
    backbone, description = load_teacher(checkpoint)
    space = backbone.space
    chosen = list(dict.fromkeys(map(space.parse, space if subnets is None else subnets)))
    preprocessor = description.get('data_preprocessor') or {}
    origin = (Path(checkpoint).name, file_sha256(checkpoint))
    for subnet in chosen:
        yield StockNetwork(subnet, *backbone.extract(subnet), preprocessor, tuple(backbone.img_size), *origin)


def open_network(checkpoint: str | os.PathLike, subnet: Subnet | str | None = None) -> StockNetwork:
    """One subnet; arguments and errors as of :func:`open_networks`.

    Raises:
        ValueError: Also if the checkpoint holds several subnets and none is named.
    """
    if subnet is None and not is_extracted(checkpoint):
        raise ValueError(f"{checkpoint}: name a subnet such as '384x12'; the config of an extracted subnet needs none")
    return next(open_networks(checkpoint, None if subnet is None else [subnet]))


def is_extracted(path: str | os.PathLike) -> bool:
    """Whether ``path`` is the config of an extracted subnet, by its name."""
    return Path(path).suffix == '.py'


def _read_extracted(path: Path) -> StockNetwork:
    """The network of a config that extraction wrote, with the weights that it names."""
    if not path.is_file():
        raise CheckpointError(f'{path}: there is no such file')
    cfg = read_file(path)
    config = dict((cfg.get('model') or {}).get('backbone') or {})
    weights = (config.pop('init_cfg', None) or {}).get('checkpoint')
    kind = str(config.get('type', '')).removeprefix('mmpretrain.')
    if weights is None or kind not in FAMILIES:
        raise CheckpointError(
            f'{path}: expected a checkpoint (.pth), or the config of an extracted subnet, with the weights in '
            f"'model.backbone.init_cfg' and a backbone that is one of {', '.join(FAMILIES)}"
        )
    if not Path(weights).is_file():
        raise CheckpointError(f'{path}: its weights are not beside it: there is no {weights}')
    content = read_checkpoint(weights)
    state, meta = content.get('state_dict', content), content.get('meta') or {}
    check_finite(state, weights)
    if not {'source', 'source_sha256'} <= set(meta):
        raise CheckpointError(f'{weights}: expected weights that extraction wrote, which say where they come from')
    network = MODELS.build(config)
    if (description := description_of(meta, weights)) is not None:
        wrong, resizing = compare(network, description)
        if wrong or resizing != Resizing():
            what = '; '.join(map(str, wrong)) or 'the grid of patches, or the window, is another one'
            raise CheckpointError(f'{path} does not describe the network of {weights}: {what}')
    return StockNetwork(
        subnet=name_of(network, FAMILIES[kind], meta, weights),
        config=config,
        state=state,
        data_preprocessor={**(cfg.get('data_preprocessor') or {}), **_value_range(cfg)},
        image_size=_image_size(config, Path(weights)),
        source=meta['source'],
        source_sha256=meta['source_sha256'],
    )


def _value_range(cfg: Config) -> dict[str, Any]:
    """Which values of bands became 0 to 255, as the config loads its images; nothing of grey and colour ones."""
    pipeline = ((cfg.get('test_dataloader') or {}).get('dataset') or {}).get('pipeline') or [{}]
    is_bands = str(pipeline[0].get('type', '')).rpartition('.')[2] == 'LoadBands'
    return dict(value_range=pipeline[0].get('value_range') or (0, 255)) if is_bands else {}


def _image_size(config: Mapping[str, Any], weights: Path) -> tuple[int, int]:
    """Height and width of the pre-training, which a ResNet's config does not say, but the manifest beside it."""
    if (size := config.get('img_size')) is not None:
        return to_2tuple(size)
    manifest = weights.parent / 'manifest.json'
    try:
        entries = json.loads(manifest.read_text(encoding='utf-8'))
        return next(tuple(entry['image_size']) for entry in entries if entry['file'] == weights.name)
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise CheckpointError(f'{manifest}: expected the manifest that extraction wrote with {weights.name}') from error
