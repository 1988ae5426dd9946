"""The npm packages `emoji-datasource-*` as folders of images."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import cv2
import numpy as np

LEFT_OUT = 'Component'  # skin tones, that are parts of other emoji


class Package(Protocol):
    """Files of a package by their path below its root."""

    def read(self, name: str) -> bytes:
        """Content of a file; KeyError if there is none."""
        ...

    def names(self) -> list[str]:
        """All files."""
        ...


class _Folder:
    def __init__(self, root: Path):
        # npm unpacks into package/.
        self.root = root / 'package' if (root / 'package' / 'emoji.json').is_file() else root

    def read(self, name: str) -> bytes:
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            raise KeyError(name) from None

    def names(self) -> list[str]:
        return [path.relative_to(self.root).as_posix() for path in self.root.rglob('*') if path.is_file()]


class _Tarball:
    def __init__(self, tar: tarfile.TarFile):
        self.tar = tar
        self.members = {  # package/emoji.json
            PurePosixPath(*PurePosixPath(member.name).parts[1:]).as_posix(): member for member in tar if member.isfile()
        }

    def read(self, name: str) -> bytes:
        return self.tar.extractfile(self.members[name]).read()

    def names(self) -> list[str]:
        return list(self.members)


@contextmanager
def _opened(path: Path) -> Iterator[Package]:
    if path.is_dir():
        yield _Folder(path)
        return
    try:
        with tarfile.open(path) as tar:
            yield _Tarball(tar)
    except tarfile.TarError as error:
        raise ValueError(f'{path} is neither a folder nor a package of npm: {error}') from error


def write_emoji(package: str | os.PathLike, out: str | os.PathLike) -> dict[str, int]:
    """Write the images of a package, 64 x 64 pixels on white, to ``OUT/{train,test}/CATEGORY/NAME.png``.

    Emoji that differ in the colour of skin from one that is there, and components, are left out. Every third
    image of a category is for tests, in an order that follows from a digest of the names: neighbours in the order of
    the names are often as good as the same.

    Args:
        package: The .tgz file of npm, or the folder that it was unpacked to.
        out: New or empty.

    Returns:
        Number of images of each split.

    Raises:
        FileNotFoundError: If there is no such package.
        FileExistsError: If ``out`` holds anything.
        ValueError: If the package is another, or lacks an image that it lists.
    """
    package, out = Path(package), Path(out)
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f'{out} is not empty')
    with _opened(package) as files:
        images = dict(_images(files, package))
    by_category: dict[str, list[str]] = {}
    for category, name in images:
        by_category.setdefault(category, []).append(name)
    counts: Counter[str] = Counter()
    for category, names in by_category.items():
        for number, name in enumerate(sorted(names, key=_digest)):
            split = 'test' if number % 3 == 2 else 'train'
            path = out / split / _as_folder(category) / f'{name}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(cv2.imencode('.png', images[category, name])[1].tobytes())
            counts[split] += 1
    return {split: counts[split] for split in ('train', 'test')}


def _images(files: Package, package: Path) -> Iterator[tuple[tuple[str, str], np.ndarray]]:
    """Category and name of each emoji with its image."""
    try:
        entries = json.loads(files.read('emoji.json'))
        kind = next(name.split('/')[1] for name in sorted(files.names()) if name.startswith('img/'))
    except (KeyError, StopIteration, ValueError) as error:
        raise ValueError(f'{package} is not a package emoji-datasource-*: no emoji.json or no images') from error
    for entry in entries:
        if entry['category'] != LEFT_OUT and entry.get(f'has_img_{kind}'):
            yield (entry['category'], Path(entry['image']).stem), _on_white(files, f'img/{kind}/64', entry, package)


def _on_white(files: Package, folder: str, entry: Mapping[str, Any], package: Path) -> np.ndarray:
    """BGR uint8; what is transparent becomes white."""
    name = f'{folder}/{entry["image"]}'
    try:
        data = files.read(name)
    except KeyError:
        raise ValueError(f'{package} lists {name}, which it lacks') from None
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ValueError(f'{package}: {name} is not an image')
    if image.ndim == 2:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    if image.shape[2] == 3:
        return image
    alpha = image[..., 3:].astype(np.float32) / 255
    return (image[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _as_folder(category: str) -> str:
    """``'People & Body'`` becomes ``'people_and_body'``."""
    return '_'.join(category.lower().replace('&', 'and').split())
