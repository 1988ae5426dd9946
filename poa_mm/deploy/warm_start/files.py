"""The tensors in a file of another library, and what lies beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from poa_mm.checkpoint import CheckpointError, check_finite, read_checkpoint, shorten

BOXES = ('teacher', 'state_dict', 'model')  # where libraries put the weights, the better one first
WRAPPERS = {'module', '_fsdp_wrapped_module', '_orig_mod'}
WEIGHTS = ('model.safetensors', 'pytorch_model.bin')  # of a folder that a library has saved
MAX_SETTINGS = 1 << 20  # bytes of a config.json


class Tensors(NamedTuple):
    """What a file holds.

    Args:
        path: The file.
        weights: Its tensors by name, without the names of wrappers; numbers in single precision.
        ignored: Names of everything else.
        meta: What the file says of itself.
        settings: Of the library, in ``config.json`` beside the file; empty if there is none.
        preparation: Of images, in ``preprocessor_config.json`` beside it; empty if there is none.
    """

    path: Path
    weights: dict[str, Tensor]
    ignored: list[str]
    meta: Mapping[str, Any]
    settings: Mapping[str, Any]
    preparation: Mapping[str, Any]


def read_tensors(path: str | os.PathLike, content: Mapping[str, Any] | None = None) -> Tensors:
    """Read a file of weights, without executing anything in it.

    Args:
        path: A file of ``torch.save`` (``.pth``, ``.pt``, ``.bin``), a ``.safetensors`` file, or a folder with
            ``model.safetensors`` or ``pytorch_model.bin``.
        content: Of the file, if it has been read. Default: it is read here.

    Raises:
        CheckpointError: If it cannot be read, holds no tensors, or NaN or infinity.
    """
    path = find_file(path)
    content = read_checkpoint(path) if content is None else content
    meta = content.get('meta')
    box, ignored = _open_boxes(content)
    weights: dict[str, Tensor] = {}
    for name, value in box.items():
        plain = '.'.join(part for part in str(name).split('.') if part not in WRAPPERS)
        if not isinstance(value, Tensor):
            ignored.append(str(name))
        elif plain in weights:
            raise CheckpointError(f'{path}: two weights are called {plain}')
        else:
            # Some are saved in half precision, in which not everything can be computed.
            weights[plain] = value.float() if value.is_floating_point() else value
    if not weights:
        raise CheckpointError(f'{path}: expected tensors by name, found only {shorten(content)}')
    check_finite(weights, str(path))
    return Tensors(
        path,
        weights,
        ignored,
        meta if isinstance(meta, Mapping) else {},
        _settings(path.with_name('config.json')),
        _settings(path.with_name('preprocessor_config.json')),
    )


def find_file(path: str | os.PathLike) -> Path:
    """The file of weights: ``path``, or the one in the folder that it is."""
    path = Path(path).expanduser()
    found = [path / name for name in WEIGHTS if (path / name).is_file()]
    return found[0] if found else path


def _open_boxes(content: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[str]]:
    """The dict that holds tensors, and what lies beside it."""
    ignored: list[str] = []
    while not any(isinstance(value, Tensor) for value in content.values()):
        boxes = {name: value for name, value in content.items() if isinstance(value, Mapping) and name in BOXES}
        if not boxes:
            break
        name = next(name for name in BOXES if name in boxes)
        ignored += [str(other) for other in content if other not in (name, 'meta')]
        content = boxes[name]
    return content, ignored


def _settings(path: Path) -> Mapping[str, Any]:
    """A dict in a JSON file; empty if there is no such file."""
    if not path.is_file() or path.stat().st_size > MAX_SETTINGS:
        return {}
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise CheckpointError(f'{path}: expected the settings of a network as JSON: {error}') from error
    return found if isinstance(found, dict) else {}
