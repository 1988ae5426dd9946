"""Which versions of the libraries below are supported, checked at import."""

from __future__ import annotations

from importlib import import_module

from mmengine.utils import digit_version

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
        versions = {name: _version(name) for name in SUPPORTED}
    wrong = [
        f'{name} {found} (supported: >={SUPPORTED[name][0]}, <{SUPPORTED[name][1]})'
        for name, found in versions.items()
        if not _fits(name, found)
    ]
    if wrong:
        raise ImportError(
            f'poa_mm does not support {"; ".join(wrong)}. Tested sets of versions: requirements/onedl.txt and '
            'requirements/openmmlab.txt, or pip install poa_mm[onedl] or poa_mm[openmmlab].'
        )


def _version(name: str) -> str:
    try:
        return import_module(f'{name}.version').__version__
    except ModuleNotFoundError:
        return '(not installed)'


def _fits(name: str, found: str) -> bool:
    lowest, beyond = SUPPORTED[name]
    try:
        return digit_version(lowest) <= digit_version(found) < digit_version(beyond)
    except (AssertionError, ValueError):  # not a version at all
        return False
