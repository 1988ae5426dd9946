"""The benchmarks of sources run, with a handful of files."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / 'benchmarks'))
import bench_data
import data_sources


@pytest.mark.parametrize('kind', ['CustomDataset', 'ImageFolder'])
def test_a_list_is_opened_and_measured(tmp_path, kind):
    data_sources.make_files(tmp_path / 'files', 1500)
    assert len(list((tmp_path / 'files').glob('*/*.JPEG'))) == 1500
    found = data_sources.open_and_draw(kind, str(tmp_path / 'files'), str(tmp_path / 'index'))
    assert set(found) == {'seconds', 'processor', 'memory', 'peak'} and found['seconds'] > 0


def test_sources_are_compared(tmp_path):
    (tmp_path / 'images').mkdir()
    result = data_sources.compare_sources(bench_data.make_images(tmp_path / 'images', 4), rounds=1)
    assert {'folder', 'tar'} <= result.keys()
    assert all(rate > 0 for row in result.values() for rate in row.values())
