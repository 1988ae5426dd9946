"""A folder of images."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence

from mmengine.fileio import list_from_file
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from .listing import SUFFIXES, class_folders
from .source_dataset import SourceDataset
from .sources import FileSource, FolderSource, ImageSource
from .sources.index_file import Index


@DATASETS.register_module()
class ImageFolder(SourceDataset):
    """mmpretrain's ``CustomDataset`` with rules of its own for what counts, and classes that go by name.

    Every file below the folder counts that :class:`~poa_mm.datasets.SafeLoadImageFromFile` can decode, whatever its
    case; hidden files and folders don't, nor do links that lead back to a folder above. The log says how many are
    used and how many left out, by suffix. The order is that of ``CustomDataset``.

    With labels, the folders below the root are the classes, in sorted order. To score on another folder than the one
    that was trained on, give both the same classes: a class without images then keeps its number.

    A long list of files is kept in an index file, which all processes map: see ``docs/data.md``.

    Args:
        data_root: What ``data_prefix`` and ``ann_file`` are relative to. Default: ''.
        data_prefix: The folder, or a URL that one of mmengine's storage backends lists.
        ann_file: A file that lists the images instead: a path relative to the folder and, with labels, a blank and a
            number in each line. Default: none.
        with_label: Whether its folders are classes. Default: True.
        classes: Names of the classes in the order of their labels, which the folders are looked up in. Default: the
            names of the folders.
        class_root: Take ``classes`` from the folders in this one instead, which is not joined with ``data_root``.
        extensions: Suffixes of images. Default: all that can be decoded.
        cache_dir: Where the index file goes. Default: beside the work dir.
        **kwargs: Of :class:`SourceDataset`, such as ``pipeline``.

    Raises:
        ValueError: If there is no image, or a folder is none of the given classes.
        OSError: If a folder is missing or cannot be read.
    """

    def __init__(
        self,
        data_root: str = '',
        data_prefix: str | Mapping[str, str] = '',
        ann_file: str = '',
        with_label: bool = True,
        classes: str | Sequence[str] | None = None,
        class_root: str | None = None,
        extensions: Sequence[str] = SUFFIXES,
        cache_dir: str | os.PathLike | None = None,
        **kwargs,
    ):
        if class_root is not None:
            if classes is not None:
                raise ValueError('classes and class_root say the same: give one of them')
            classes = class_folders(class_root)
        if not (data_root or data_prefix):
            raise ValueError('ImageFolder needs data_prefix, the folder')
        self.extensions = tuple(sorted({suffix.lower() for suffix in extensions}))
        self.cache_dir = cache_dir
        super().__init__(
            with_label=with_label,
            data_root=data_root,
            data_prefix=data_prefix,
            ann_file=ann_file,
            classes=classes,
            **kwargs,
        )

    def open_source(self) -> ImageSource:
        """The files."""
        if self.ann_file:
            return self._listed()
        classes = self._folders_of_classes() if self.with_label else None
        source = FolderSource(self.img_prefix, classes, self.extensions, self.cache_dir)
        warn = source.left_out or source.loops
        print_log(f'{self.img_prefix}: {source.counts}', 'current', logging.WARNING if warn else logging.INFO)
        if source.empty:
            print_log(f'{self.img_prefix} has no images of {", ".join(source.empty)}', 'current', logging.WARNING)
        return source

    def _folders_of_classes(self) -> list[str]:
        folders = class_folders(self.img_prefix)
        classes = folders if self.CLASSES is None else list(self.CLASSES)
        if unknown := [folder for folder in folders if folder not in classes]:
            raise ValueError(
                f'{self.img_prefix} has the folders {", ".join(unknown)}, which are none of the classes '
                f'{", ".join(classes)}'
            )
        self.folder_to_idx = {name: label for label, name in enumerate(classes)}
        return classes

    def _listed(self) -> FileSource:
        """The files that ``ann_file`` lists."""
        lines = [line for line in list_from_file(self.ann_file) if line.strip()]
        paths, labels = lines, None
        if self.with_label:
            pairs = [line.strip().rsplit(' ', 1) for line in lines]
            wrong = next(
                (number for number, pair in enumerate(pairs) if len(pair) < 2 or not pair[1].isdecimal()), None
            )
            if wrong is not None:
                raise ValueError(f'{self.ann_file}: {lines[wrong]!r} is not a path, a blank and the number of a class')
            paths, labels = [path for path, _ in pairs], [int(label) for _, label in pairs]
        if not paths:
            raise ValueError(f'{self.ann_file} lists no images')
        return FileSource(self.img_prefix, Index(*FileSource.packed(list(map(os.fsencode, paths)), labels)))
