"""Reading a checkpoint that is one file, without running anything that it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import CheckpointError
from .sealing import check_file, check_is_file, is_archive
from .unpickling import read_archive


def read_file(path: Path, weights: bool = True) -> dict[str, Any]:
    """Contents of one file; arguments, result and errors as :func:`~poa_mm.checkpoint.read_checkpoint`."""
    check_is_file(path)
    if weights and is_archive(path):
        check_file(path)
    content = _read_safetensors(path) if path.suffix == '.safetensors' else read_archive(path, weights)
    if not isinstance(content, dict):
        raise CheckpointError(f'{path}: expected a checkpoint, which is a dict, found {type(content).__name__}')
    return content


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework='pt') as file:
            return {
                'state_dict': {name: file.get_tensor(name) for name in file.keys()},  # noqa: SIM118
                'meta': file.metadata() or {},
            }
    except SafetensorError as error:
        raise CheckpointError(f'{path}: expected a safetensors file, found a broken or other one ({error})') from error
