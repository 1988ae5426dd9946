"""What a pipeline knows of where its images lie: nothing but this."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np


class ImageSource(ABC):
    """Images by number: of a folder, in tar files, or in an Arrow table.

    Sources are cheap to pickle and may be read by forked and spawned processes at the same time.

    Attributes:
        classes: Names of the labels, by number; None where there are no names.
        digest: SHA-256 of the names in their order, in hex: the same only for the same list of images.
        stamp: What changes with the files that hold many images each; empty where each image is a file.
        left_out: How many files are no images, by suffix or reason.
        labelled: Whether every image has a label.
        are_files: Whether :meth:`name` is a path from which anybody can read the image.
    """

    classes: Sequence[str] | None = None
    labelled: bool = False
    are_files: bool = False
    digest: str = ''
    stamp: str = ''
    left_out: Mapping[str, int] = {}

    @abstractmethod
    def __len__(self) -> int:
        """How many images there are."""

    @abstractmethod
    def name(self, index: int) -> str:
        """What messages call an image: its path, or its shard and name there."""

    def key(self, index: int) -> str:
        """Name of an image within its source, which stays the same where the source is moved."""
        return self.name(index)

    @abstractmethod
    def read(self, index: int) -> bytes | np.ndarray:
        """The content of an image's file, or its pixels ``(H, W, C)``.

        Raises:
            OSError: If it cannot be read.
        """

    def label(self, index: int) -> int | None:
        """The class of an image, not negative; None where it has none."""
        return None
