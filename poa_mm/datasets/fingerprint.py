"""Whether a data set still holds what it held: a short text that changes with it."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import numpy as np

from .classes import parts_of


def fingerprint(dataset: Any) -> str:
    """How many images there are, and a digest of what tells them apart; no image is read.

    The digest is of the name and the label of each image, and of the size and the time of the last change of its file,
    or of the file that holds many images. Of images in memory, it is of their pixels.

    Args:
        dataset: Any, wrapped or not. Of one that says nothing of its images, their number counts.
    """
    digest = hashlib.sha256()
    for part in parts_of(dataset):
        describe = getattr(part, 'get_data_info', None)
        source = getattr(part, 'source', None)
        digest.update(f'{len(part)} {getattr(source, "digest", "")} {getattr(source, "stamp", "")}'.encode())
        for index in range(len(part) if describe else 0):
            for key, value in sorted(describe(index).items()):
                digest.update(key.encode())
                digest.update(_content(value))
    return f'{len(dataset)} images, {digest.hexdigest()[:16]}'


def _content(value: Any) -> bytes:
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, str):
        try:
            there = os.stat(value)
        except (OSError, ValueError):  # a label, or the name of an image in an archive
            return value.encode()
        return f'{value} {there.st_size} {there.st_mtime_ns}'.encode()
    return repr(value).encode()
