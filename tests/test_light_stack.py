"""Pre-training, extraction and evaluation ask for no compiled op of mmcv, for no mmdet and no mmseg."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from poa_mm.datasets.scenes import write_scenes

ROOT = Path(__file__).parents[1]
FULL = find_spec('mmdet') is not None
# A process in which they are not there, whatever is installed.
WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(('mmcv._ext', 'mmcv.ops', 'mmdet', 'mmseg')))  # None: not to be found
import poa_mm.deploy.extract, poa_mm.evaluation
from mmengine.registry import MODELS
for kind in ('VisionTransformer', 'SwinTransformer', 'ResNet'):
    assert MODELS.get('Elastic' + kind)
print('imported')
"""


def python(*arguments):
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    return subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, cwd=ROOT)


def test_imported_where_they_are_missing():
    done = python('-c', WITHOUT)
    assert 'imported' in done.stdout, done.stderr


@pytest.mark.skipif(FULL, reason='about an environment without mmdet and mmseg (make test-light)')
@pytest.mark.parametrize(
    ('command', 'library'),
    [
        (['tools/train.py', 'configs/detection/cascade-mask-rcnn_poa-vit-s-p16_fpn_1x_coco.py'], 'mmdet'),
        (['tools/train.py', 'configs/segmentation/linear_poa-vit-s-p16_160k_ade20k-512x512.py'], 'mmseg'),
    ],
)
def test_what_needs_them_says_so_in_one_line(command, library):
    done = python(*command)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert re.search(f"{library} is not installed|No module named '{library}'", last)
    assert 'Traceback' not in done.stderr


@pytest.mark.skipif(FULL, reason='about an environment without mmdet and mmseg (make test-light)')
def test_the_names_of_coco_are_those_of_mmdet(tmp_path):
    with pytest.raises(ValueError, match="names='library': mmdet is not installed"):
        write_scenes(tmp_path / 'scenes', source='digits', train=1, val=1, names='library')
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(FULL, reason='about an environment without mmdet and mmseg (make test-light)')
def test_there_is_no_compiled_op():
    assert find_spec('mmcv') and find_spec('mmcv._ext') is None
