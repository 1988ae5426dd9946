"""Writing files all together or not at all."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch


class StagedFiles:
    """Files of one folder that appear together, complete, or not at all.

    Each is written and synced under a temporary name beside its final one. Leaving the ``with`` block
    renames them all; leaving it by an exception removes what was written. Usage::

        with StagedFiles('out') as files:
            files.add('a.json', lambda path: path.write_text('{}'))
            files.add('b/c.json', lambda path: path.write_text('{}'))

    Args:
        folder: Where the files go; made if it is missing.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self._staged: dict[Path, Path] = {}  # final name -> temporary name
        self._new_folders: list[Path] = []  # made here, an outer one before those in it

    def __enter__(self) -> StagedFiles:
        self._make(self.folder)
        return self

    def add(self, name: str, write: Callable[[Path], object]) -> None:
        """Let ``write(path)`` write the file that will be called ``name``.

        Args:
            name: Name of a file in the folder, or ``'sub/name'`` of one in a folder in it.
            write: Writes the file that it is given the path of, which is there, empty.

        Raises:
            ValueError: If ``name`` is something else, so that nothing gets out of the folder.
            OSError: If it cannot be written; names it.
        """
        parts = name.split('/')
        if len(parts) > 2 or any(Path(part).name != part or part in ('', '.', '..') for part in parts):
            raise ValueError(f'{name!r} is not the name of a file in {self.folder}')
        folder = (self.folder / name).parent
        self._make(folder)
        temporary = folder / f'.{parts[-1]}.{os.getpid()}.tmp'
        self._staged[self.folder / name] = temporary
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            write(temporary)
        except OSError as error:  # a full disk has no name of a file, or the temporary one
            raise OSError(error.errno, error.strerror or str(error), str(self.folder / name)) from error
        temporary.chmod(mode)  # safetensors makes files that only their owner may read
        with temporary.open('rb+') as file:
            os.fsync(file.fileno())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        complete = False
        try:
            if kind is None:
                self._rename()
                complete = True
        finally:
            for temporary in self._staged.values():
                temporary.unlink(missing_ok=True)
            if not complete:
                for folder in reversed(self._new_folders):
                    with suppress(OSError):  # somebody else may have put a file there
                        folder.rmdir()

    def _make(self, folder: Path) -> None:
        new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        if new:
            self._new_folders.append(folder)

    def _rename(self) -> None:
        new = [final for final in self._staged if not final.exists()]
        try:
            for final, temporary in self._staged.items():
                os.replace(temporary, final)
        except BaseException:
            for final in new:
                final.unlink(missing_ok=True)
            raise


def save_to(path: Path, content: Any) -> None:
    """``torch.save``, by way of the memory: what goes wrong with the file is an ``OSError`` and names it.

    Given the path, torch would have errors of its own for a full disk, and write the temporary name into the file.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with path.open('wb') as file:
        file.write(buffer.getbuffer())
