"""Which versions of the libraries below are supported, checked before any of them is imported."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

# Lowest supported version and the first one that is not; the pins of the two stacks, which are what
# the tests run on, are in requirements/.
SUPPORTED = {
    'torch': ('2.1', '2.11'),
    'mmengine': ('0.10.5', '0.11'),
    'mmcv': ('2.1.0', '2.4'),
    'mmpretrain': ('1.2.0', '1.4'),
}


def check_versions(versions: dict[str, str] | None = None) -> None:
    """Check that every library is there in a supported version.

    Args:
        versions: Versions by library. Default: those of the libraries found.

    Raises:
        ImportError: If a library is missing or its version is not supported; names those that are.
    """
    if versions is None:
        versions = {name: _found_version(name) for name in SUPPORTED}
    wrong = [
        f'{name} {found} (supported: >={SUPPORTED[name][0]}, <{SUPPORTED[name][1]})'
        for name, found in versions.items()
        if not _numbers(SUPPORTED[name][0]) <= _numbers(found) < _numbers(SUPPORTED[name][1])
    ]
    if wrong:
        raise ImportError(
            f'poa_mm does not support {"; ".join(wrong)}. Two sets of versions are tested, requirements/onedl.txt '
            'and requirements/openmmlab.txt; `make env` installs them, README says how to do it by hand.'
        )


def is_at_least(library: str, lowest: str) -> bool:
    """Whether a library of ``SUPPORTED`` is here in version ``lowest`` or a later one."""
    return _numbers(_found_version(library)) >= _numbers(lowest)


def _found_version(name: str) -> str:
    """Version by the installed package's metadata: importing a library may already fail on another's version."""
    for distribution in (f'onedl-{name}', name):
        try:
            return version(distribution)
        except PackageNotFoundError:
            pass
    return '(not installed)'


def _numbers(found: str) -> tuple[int, ...]:
    """``'2.10.0+cu128'`` as ``(2, 10, 0)``; of what is not a version, nothing, which is below all."""
    numbers = re.match(r'\d+(\.\d+)*', found)
    return tuple(map(int, numbers.group().split('.'))) if numbers else ()
