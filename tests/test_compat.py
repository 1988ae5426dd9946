import re
from pathlib import Path

import pytest

from poa_mm.compat import SUPPORTED, check_versions

REQUIREMENTS = Path(__file__).parents[1] / 'requirements'
PACKAGES = {
    'onedl': {'onedl-mmengine': 'mmengine', 'onedl-mmcv': 'mmcv', 'onedl-mmpretrain': 'mmpretrain', 'torch': 'torch'},
    'openmmlab': {name: name for name in SUPPORTED},
}


@pytest.mark.parametrize('stack', PACKAGES)
def test_pinned_stacks_are_supported(stack):
    pins = dict(re.findall(r'^([\w-]+)==(\S+)$', (REQUIREMENTS / f'{stack}.txt').read_text(), re.MULTILINE))
    check_versions({library: pins[package] for package, library in PACKAGES[stack].items()})


def test_the_libraries_here_are_supported():
    check_versions()


@pytest.mark.parametrize('version', ['1.13.1', '2.14.1+cu130', '(not installed)'])
def test_others_are_named_with_what_is_supported(version):
    with pytest.raises(ImportError, match=re.escape(f'torch {version} (supported: >=2.1, <2.11)')) as error:
        check_versions({'torch': version, 'mmcv': '2.1.0'})
    assert 'mmcv 2.1.0' not in str(error.value)
    assert 'requirements/onedl.txt' in str(error.value)
