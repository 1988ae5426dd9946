"""Data sets of mmpretrain over sources of images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmengine.registry import DATASETS
from mmpretrain.datasets import BaseDataset

from .decoding import BadImageError
from .listing import SUFFIXES
from .sources import ArrowSource, ImageSource, TarSource
from .transforms.loading import SafeLoadImageFromFile


class SourceDataset(BaseDataset):
    """Images of a source; samples are what ``CustomDataset`` would give of the same images as files.

    The list of images is neither copied nor held in memory as objects. An item begins as ``img_path``, the name of
    the image; ``img_bytes``, the content of its file (or ``img``, its pixels); ``sample_idx``; and ``gt_label``, where
    there are labels. The pipeline loads it with :class:`~poa_mm.datasets.SafeLoadImageFromFile`.

    Args:
        with_label: Whether items have ``gt_label``. Default: where every image has a label.
        **kwargs: Of mmpretrain's ``BaseDataset``: ``pipeline``, ``classes``, ``metainfo``, ``indices``, ``test_mode``,
            ``lazy_init``, ``data_root``. ``serialize_data`` makes no difference.

    Raises:
        ValueError: If ``with_label`` is set and an image has none, the classes that are given are not those of the
            source, or the pipeline reads files.
    """

    source: ImageSource

    def __init__(self, with_label: bool | None = None, serialize_data: bool = False, ann_file: str = '', **kwargs):
        self.with_label = with_label
        super().__init__(ann_file=ann_file, serialize_data=False, **kwargs)

    def open_source(self) -> ImageSource:
        """The images. Called once, by :meth:`full_init`."""
        raise NotImplementedError

    def full_init(self) -> None:
        """Open the source."""
        if self._fully_initialized:
            return
        self.source = self.open_source()
        if not self.source.are_files:
            _check_pipeline(type(self).__name__, self.pipeline.transforms)
        self._take_classes()
        labelled = self.source.labelled
        if self.with_label and not labelled:
            index = next(index for index in range(len(self.source)) if self.source.label(index) is None)
            raise ValueError(f'{self.source.name(index)} has no label; with_label=False does without')
        self.with_label = labelled if self.with_label is None else self.with_label
        self._chosen = None if self._indices is None else _chosen(len(self.source), self._indices)
        self._fully_initialized = True

    def _take_classes(self) -> None:
        own, given = self.source.classes, self._metainfo.get('classes')
        if own is None:
            return
        if given is not None and tuple(given) != tuple(own):
            raise ValueError(
                f'classes={_few(given)} are not those of the images, {_few(own)}: leave them out, labels go by name'
            )
        self._metainfo['classes'] = tuple(own)

    def __len__(self) -> int:
        if not self._fully_initialized:
            self.full_init()
        return len(self.source) if self._chosen is None else len(self._chosen)

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """Name and label of an image; its content is read by :meth:`prepare_data`."""
        index = self._index(idx)
        info = dict(img_path=self.source.name(index), sample_idx=idx % len(self))
        if self.with_label:
            info['gt_label'] = self.source.label(index)
        return info

    def _index(self, idx: int) -> int:
        """Number in the source of an image of the data set, which may be counted from the end."""
        size = len(self)
        if not -size <= idx < size:
            raise IndexError(f'image {idx} of {size}')
        return idx % size if self._chosen is None else int(self._chosen[idx])

    def prepare_data(self, idx: int) -> Any:
        """An image behind the pipeline.

        Raises:
            BadImageError: If it cannot be read.
        """
        info = self.get_data_info(idx)
        if self.source.are_files:
            return self.pipeline(info)
        try:
            content = self.source.read(self._index(idx))
        except OSError as error:
            raise BadImageError(error.strerror or str(error), info['img_path']) from error
        if isinstance(content, bytes):
            info['img_bytes'] = content
        else:
            info.update(img=content, img_shape=content.shape[:2], ori_shape=content.shape[:2])
        return self.pipeline(info)

    def get_gt_labels(self) -> np.ndarray:
        """Labels of all images, ``(N,)``."""
        return np.array([self.get_data_info(index)['gt_label'] for index in range(len(self))])

    def get_subset_(self, indices: int | Sequence[int]) -> None:
        """Keep some of the images: the first so many, the last ``-indices``, or those of these numbers."""
        before = np.arange(len(self)) if self._chosen is None else self._chosen
        self._chosen = before[_chosen(len(before), indices)]

    def get_subset(self, indices: int | Sequence[int]) -> SourceDataset:
        """A data set of some of the images, as for :meth:`get_subset_`, over the same source."""
        subset = self.__class__.__new__(self.__class__)
        subset.__dict__.update(self.__dict__, _metainfo=self.metainfo, _chosen=None)
        subset._chosen = self._chosen
        subset.get_subset_(indices)
        return subset


def _chosen(size: int, indices: int | Sequence[int]) -> np.ndarray:
    every = np.arange(size)
    if isinstance(indices, int):
        return every[:indices] if indices >= 0 else every[indices:]
    return every[np.asarray(indices, dtype=np.int64)]


def _few(classes: Sequence[str], number: int = 5) -> str:
    return f'({", ".join(map(str, classes[:number]))}{", .." if len(classes) > number else ""})'


def _check_pipeline(name: str, transforms: Sequence[Any]) -> None:
    """A transform that opens ``img_path`` would look for a file that is not there."""
    for transform in transforms:
        if isinstance(transform, LoadImageFromFile) and not isinstance(transform, SafeLoadImageFromFile):
            raise ValueError(
                f"the images of {name} are not files: dict(type='SafeLoadImageFromFile') loads them, "
                f'{type(transform).__name__} does not'
            )


@DATASETS.register_module()
class TarImages(SourceDataset):
    """Images in uncompressed tar files of WebDataset's layout, each read in place: shuffling and resume are exact.

    Files beside each other with the same name up to the first dot are a sample: ``000123.jpg``, ``000123.cls``.
    Opening the shards for the first time reads their headers, in parallel; what lies where is kept in an index file.

    Args:
        data_root: Folder of the shards.
        shards: Their names, such as ``'train-{000000..000127}.tar'``, a pattern, or a list. Default: all tar files.
        image: What of a sample's files is the image. Default: the one with a suffix of images.
        label: ``'cls'``, ``'txt'`` or ``'json.KEY'``: what of a sample is its class, a number or a name.
            Default: 'cls'.
        extensions: Suffixes of images. Default: all that can be decoded.
        cache_dir: Where the index file goes. Default: beside the work dir.
        **kwargs: Of :class:`SourceDataset`.

    Raises:
        ShardError: If shards are missing, compressed, truncated or damaged.
        ValueError: As :class:`SourceDataset`, or if there is no image.
    """

    def __init__(
        self,
        data_root: str,
        shards: str | Sequence[str] = '*.tar',
        image: str | None = None,
        label: str = 'cls',
        extensions: Sequence[str] = SUFFIXES,
        cache_dir: str | os.PathLike | None = None,
        **kwargs,
    ):
        self._options = dict(shards=shards, image=image, label=label, suffixes=extensions, cache_dir=cache_dir)
        super().__init__(data_root=data_root, **kwargs)

    def open_source(self) -> ImageSource:
        """The shards."""
        return TarSource(self.data_root, **self._options)


@DATASETS.register_module()
class HuggingFaceImages(SourceDataset):
    """Images of a data set of Hugging Face's ``datasets`` on this machine: Arrow, Parquet, or a folder of images.

    Needs the extra ``poa_mm[datasets]``. Arrow files are mapped; of anything else, ``datasets`` makes Arrow files in
    its own cache, once, which takes as much room as the images.

    Args:
        data_root: What ``save_to_disk`` has written, or a folder (or file) of Parquet, Arrow or images.
        split: Which part. Default: 'train'.
        image_key: Column of the images. Default: the only one of that kind.
        label_key: Column of the classes. Default: the only ``ClassLabel``, if there is one.
        **kwargs: Of :class:`SourceDataset`.

    Raises:
        ModuleNotFoundError: If ``datasets`` is not installed.
        OSError, ValueError: As :class:`~poa_mm.datasets.sources.ArrowSource` and :class:`SourceDataset`.
    """

    def __init__(
        self,
        data_root: str,
        split: str = 'train',
        image_key: str | None = None,
        label_key: str | None = None,
        **kwargs,
    ):
        self._options = dict(split=split, image_key=image_key, label_key=label_key)
        super().__init__(data_root=data_root, **kwargs)

    def open_source(self) -> ImageSource:
        """The table."""
        return ArrowSource(self.data_root, **self._options)
