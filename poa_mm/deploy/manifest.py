"""``manifest.json``: what is in a folder of extracted and exported subnets, and where it comes from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from poa_mm.checkpoint import CheckpointError
from poa_mm.elastic import Subnet

from .staged_files import StagedFiles

MANIFEST = 'manifest.json'


def read_manifest(folder: str | os.PathLike, origin: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Entries of a folder's manifest by their file; none if there is no manifest.

    Args:
        folder: The folder.
        origin: ``source`` and ``source_sha256`` of what is to be added.

    Raises:
        CheckpointError: If the manifest is another file, or the folder holds subnets of another checkpoint.
    """
    path = Path(folder) / MANIFEST
    if not path.exists():
        return {}
    try:
        entries = {entry['file']: entry for entry in json.loads(path.read_text(encoding='utf-8'))}
        others = {f'{entry["source"]} (SHA-256 {entry["source_sha256"]})' for entry in entries.values()}
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f'{path}: expected the manifest of extracted subnets, found another file') from error
    here = f'{origin["source"]} (SHA-256 {origin["source_sha256"]})'
    if any(entry['source_sha256'] != origin['source_sha256'] for entry in entries.values()):
        raise CheckpointError(
            f'{path.parent} holds subnets of {", ".join(sorted(others))}, not of {here}; choose another'
        )
    return entries


def add_manifest(files: StagedFiles, manifest: Mapping[str, Any], entries: Iterable[Mapping[str, Any]]) -> None:
    """Add the manifest with new entries to the files of a folder.

    Args:
        files: Of the folder.
        manifest: As :func:`read_manifest` gave it.
        entries: ``file``, ``subnet``, ``format`` and what else there is to say; one of the same file is replaced.
    """
    manifest = {**manifest, **{entry['file']: entry for entry in entries}}
    ordered = sorted(manifest.values(), key=lambda entry: (Subnet.parse(entry['subnet']), entry['format']))
    files.add(MANIFEST, lambda path: path.write_text(json.dumps(ordered, indent=2) + '\n', encoding='utf-8'))
