"""Checkpoint files: written whole or not at all, read without running anything, and the supernet they describe.

Knows torch and files, no runner.

- ``reading``: :func:`read_checkpoint`. A checkpoint is one file (``single_file``) or a folder (``sharded``);
  ``unpickling`` is how a file of ``torch.save`` is read.
- ``sealing``: whether a file holds what was written. ``atomic_files``: how it is written.
- ``supernet``: what a checkpoint says of its network. ``geometry``: what a file of extracted weights says of its
  network, compared with the one that it is loaded into; ``resizing``: where they may differ.
"""

from .atomic_files import AtomicBackend, remove_temporaries, write_file
from .errors import CheckpointError, CheckpointWriteError, check_finite, check_state, shorten
from .geometry import compare, compare_normalisation, description_of, metadata_of
from .reading import check_integrity, file_sha256, read_checkpoint
from .resizing import PATTERN, SCHEME, Resizing
from .sharded import is_sharded
from .supernet import SUPERNET_KEY, TEACHER, check_same_network, check_same_supernet, describe_supernet, load_teacher

__all__ = [
    'PATTERN',
    'SCHEME',
    'SUPERNET_KEY',
    'TEACHER',
    'AtomicBackend',
    'CheckpointError',
    'CheckpointWriteError',
    'Resizing',
    'check_finite',
    'check_integrity',
    'check_same_network',
    'check_same_supernet',
    'check_state',
    'compare',
    'compare_normalisation',
    'describe_supernet',
    'description_of',
    'file_sha256',
    'is_sharded',
    'load_teacher',
    'metadata_of',
    'read_checkpoint',
    'remove_temporaries',
    'shorten',
    'write_file',
]
