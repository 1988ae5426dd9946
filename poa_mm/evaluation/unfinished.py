"""What a scorecard that is being made has found so far, in a file: interrupted, the same command goes on from it."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from .report import write_whole

NAME = 'scorecard.unfinished.json'
SECONDS = 2.0  # between two writes


class Unfinished:
    """Results of single subnets, written again and again until all are there.

    Args:
        folder: Where the file is; made when something is first written.
        scores: What the scores depend on: the checkpoint, the data. Plain data.
        costs: What the other results depend on, too: the settings, the machine. Default: nothing more.
        protocols: Keys of results that are scores. They are kept if only ``costs`` differ and there is no other result.
            Default: none.

    Raises:
        ValueError: If the folder holds results of something else; names what differs.
    """

    def __init__(
        self,
        folder: Path,
        scores: Mapping[str, Any],
        costs: Mapping[str, Any] | None = None,
        protocols: Collection[str] = (),
    ):
        self.path = folder / NAME
        self._written = 0.0
        header = {**scores, **(costs or {})}
        self._content: dict[str, Any] = {'header': json.loads(json.dumps(header)), 'results': {}}
        if self.path.exists():
            self._content['results'] = self._read(set(costs or ()), set(protocols))

    def _read(self, costs: set[str], protocols: set[str]) -> dict[str, Any]:
        try:
            content = json.loads(self.path.read_text(encoding='utf-8'))
            found, results = content['header'], content['results']
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f'{self.path}: expected an unfinished scorecard, found another file') from error
        header = self._content['header']
        different = [key for key in sorted(found.keys() | header.keys()) if found.get(key) != header.get(key)]
        only_scored = set(different) <= costs and set(results) <= protocols
        if different and not only_scored:
            text = '; '.join(f'{key} was {found.get(key)!r}, is {header.get(key)!r}' for key in different)
            raise ValueError(
                f'{self.path} is of other settings ({text}); go on with those, choose another folder, or remove this '
                'file'
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
