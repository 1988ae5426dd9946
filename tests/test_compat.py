import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from poa_mm import compat
from poa_mm.compat import SUPPORTED, check_downstream, check_versions, without_notices

REQUIREMENTS = Path(__file__).parents[1] / 'requirements'
ONEDL = {'onedl-mmengine': 'mmengine', 'onedl-mmcv': 'mmcv', 'onedl-mmpretrain': 'mmpretrain', 'torch': 'torch'}
PACKAGES = {
    'onedl': ONEDL,
    'light': ONEDL,
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
    with pytest.raises(ImportError, match=re.escape(f'torch {version} (supported: >=2.1, <2.12)')) as error:
        check_versions({'torch': version, 'mmcv': '2.1.0'})
    assert 'mmcv 2.1.0' not in str(error.value)
    assert 'requirements/onedl.txt' in str(error.value)


@pytest.mark.parametrize(
    ('missing', 'library', 'message'),
    [
        ({'mmdet', 'mmcv._ext'}, 'mmdet', 'mmdet is not installed'),
        ({'mmcv._ext'}, 'mmseg', "mmcv's compiled ops are not installed"),
    ],
)
def test_what_detection_needs_is_named_in_one_line(monkeypatch, missing, library, message):
    monkeypatch.setattr(compat, 'find_spec', lambda name: None if name in missing else object())
    with pytest.raises(ImportError, match=message) as error:
        check_downstream(library)
    assert 'make env STACK=onedl' in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize(('missing', 'library'), [({'mmdet'}, 'mmseg'), ({'mmdet', 'mmcv._ext'}, 'mmpretrain')])
def test_what_nothing_asks_for_may_be_missing(monkeypatch, missing, library):
    monkeypatch.setattr(compat, 'find_spec', lambda name: None if name in missing else object())
    check_downstream(library)


def test_a_library_too_old_is_named_before_it_is_imported(tmp_path):
    """In a process that finds an mmcv which nothing else would accept, and which fails when imported."""
    metadata = tmp_path / 'onedl_mmcv-1.7.0.dist-info' / 'METADATA'
    metadata.parent.mkdir()
    metadata.write_text('Metadata-Version: 2.1\nName: onedl-mmcv\nVersion: 1.7.0\n')
    (tmp_path / 'mmcv.py').write_text("raise RuntimeError('imported')\n")
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, '-c', 'import poa_mm'],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, (tmp_path, root)))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert 'ImportError: poa_mm does not support mmcv 1.7.0 (supported: >=2.1.0, <2.4)' in done.stderr


def test_notices_of_libraries_are_left_out_and_nothing_else(capsys):
    with without_notices():
        print('Could not import OneDL. Skipping OneDL datasets.')
        print('something else')
    assert capsys.readouterr().out == 'something else\n'
    with pytest.raises(KeyError), without_notices():
        print('said before')
        raise KeyError
    assert capsys.readouterr().out == 'said before\n'


def test_importing_says_nothing():
    code = 'import poa_mm'
    if find_spec('mmdet') and find_spec('mmcv._ext'):  # the light stack has neither
        code += '; from poa_mm.compat import import_downstream; import_downstream("mmdet")'
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ''
