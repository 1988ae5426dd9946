"""What a scorecard that is being made has found so far, in a file: interrupted, the same command goes on from it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .report import write_whole

NAME = 'scorecard.unfinished.json'
SECONDS = 2.0  # between two writes


class Unfinished:
    """Results of single subnets, written again and again until all are there.

    Args:
        folder: Where the file is; made when something is first written.
        header: What the results depend on: the checkpoint, the settings, the machine. Plain data.

    Raises:
        ValueError: If the folder holds results of another header; names what differs.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any]):
        self.path = folder / NAME
        self._written = 0.0
        self._content: dict[str, Any] = {'header': json.loads(json.dumps(header)), 'results': {}}
        if self.path.exists():
            self._content['results'] = self._read()

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self.path.read_text(encoding='utf-8'))
            found, results = content['header'], content['results']
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f'{self.path}: expected an unfinished scorecard, found another file') from error
        header = self._content['header']
        differences = [
            f'{key} was {found.get(key)!r}, is {header.get(key)!r}'
            for key in sorted(found.keys() | header.keys())
            if found.get(key) != header.get(key)
        ]
        if differences:
            raise ValueError(
                f'{self.path} is of other settings ({"; ".join(differences)}); go on with those, choose another '
                'folder, or remove this file'
            )
        return results

    def get(self, *keys: str) -> Any:
        """The result under these keys, or None."""
        found: Any = self._content['results']
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        return found

    def put(self, keys: Sequence[str], result: Any, write: bool = False) -> None:
        """Keep a result, plain data, under these keys; written at once if ``write``, else within two seconds."""
        place = self._content['results']
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = result
        if write or time.monotonic() - self._written > SECONDS:
            self.write()

    def write(self) -> None:
        """Write all that there is; the file is never seen in part."""
        if not self._content['results']:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self._content)
        write_whole(self.path, lambda path: path.write_text(text, encoding='utf-8'))
        self._written = time.monotonic()

    def remove(self) -> None:
        """Remove the file: the scorecard is finished."""
        self.path.unlink(missing_ok=True)
