"""Which versions of the libraries below are supported, checked before any of them is imported."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

# Lowest supported version and the first one that is not; the pins of the three stacks, which are what
# the tests run on, are in requirements/.
SUPPORTED = {
    'torch': ('2.1', '2.12'),
    'mmengine': ('0.10.5', '0.11'),
    'mmcv': ('2.1.0', '2.4'),
    'mmpretrain': ('1.2.0', '1.4'),
}

# What the maintained continuation of OpenMMLab prints at each import, about a package that is not for the public.
NOTICE = 'Could not import OneDL'

# Libraries that need mmcv's compiled ops; nothing in poa_mm does itself.
DOWNSTREAM = ('mmdet', 'mmseg')


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
            f'poa_mm does not support {"; ".join(wrong)}. Three sets of versions are tested, requirements/onedl.txt, '
            'openmmlab.txt and light.txt; `make env STACK=...` installs one, README says how to do it by hand.'
        )


@contextmanager
def without_notices() -> Iterator[None]:
    """Leave out the notices that libraries print while they are imported; whatever else they print stays."""
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            yield
    finally:
        if rest := [line for line in printed.getvalue().splitlines() if NOTICE not in line]:
            print(*rest, sep='\n')


def check_downstream(library: str) -> None:
    """Check that mmdet or mmseg is there, with the compiled ops of mmcv that it needs; the light stack has neither.

    Args:
        library: ``'mmdet'`` or ``'mmseg'``; of any other nothing is asked.

    Raises:
        ImportError: If it is not there, or mmcv has no compiled ops.
    """
    if library not in DOWNSTREAM:
        return
    missing = [name for name in (library, 'mmcv._ext') if find_spec(name) is None]
    if missing:
        what = "mmcv's compiled ops are" if missing == ['mmcv._ext'] else f'{library} is'
        raise ImportError(
            f'{what} not installed, which detection and segmentation need; '
            '`make env STACK=onedl` builds an environment with them (the light stack has none)'
        )


def is_at_least(library: str, lowest: str) -> bool:
    """Whether a library of ``SUPPORTED`` is here in version ``lowest`` or a later one."""
    return _numbers(_found_version(library)) >= _numbers(lowest)


def import_downstream(library: str | None) -> None:
    """Import mmdet or mmseg, which registries would do later, without its notices; of any other name, nothing."""
    if library in DOWNSTREAM:
        with without_notices():
            import_module(f'{library}.datasets')
            import_module(f'{library}.models')


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
