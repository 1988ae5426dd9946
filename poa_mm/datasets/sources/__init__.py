"""Where images lie: each kind of storage behind :class:`ImageSource`."""

from .arrow import ArrowSource
from .base import ImageSource
from .folder import FileSource, FolderSource
from .guess import guess_dataset, guess_source
from .shards import ShardError, find_shards
from .tar import TarSource

__all__ = [
    'ArrowSource',
    'FileSource',
    'FolderSource',
    'ImageSource',
    'ShardError',
    'TarSource',
    'find_shards',
    'guess_dataset',
    'guess_source',
]
