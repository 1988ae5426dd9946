import runpy
import sys
from pathlib import Path

import pytest
from image_files import encoded, photo

from poa_mm.datasets import TarImages

TOOL = Path(__file__).parents[2] / 'tools' / 'dataset_converters' / 'to_shards.py'


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the tool as a command and gives its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', [str(TOOL), *arguments])
        code = 0
        try:
            runpy.run_path(str(TOOL), run_name='__main__')
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def images(tmp_path):
    for index in range(5):
        folder = tmp_path / 'images' / f'class{index % 2}'
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f'{index}.jpg').write_bytes(encoded(photo(seed=index)))
    return 'images'


def test_what_it_prints_reads_what_it_wrote(run, images):
    code, out, err = run(images, '-o', 'out', '--labels', '--per-shard', '2', '--prefix', 'val')
    assert code == 0
    assert 'shards: 5/5' in err
    line = next(line for line in out.splitlines() if 'TarImages' in line)
    options = eval(line[line.index('dict(') : line.rindex(' reads')])
    dataset = TarImages(**{key: value for key, value in options.items() if key != 'type'}, cache_dir='cache')
    assert len(dataset) == 5
    assert dataset.metainfo['classes'] == ('class0', 'class1')
    assert [dataset.get_data_info(index)['gt_label'] for index in range(5)] == [0, 0, 0, 1, 1]
    assert run('out', '-o', 'again', '--per-shard', '5')[0] == 0  # shards of another size


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['nowhere', '-o', 'out'], 'nowhere is no folder'),
        (['empty', '-o', 'out'], 'no images in empty'),
        (['images', '-o', 'out', '--per-shard', '0'], 'per_shard 0'),
        (['train-{0..3}.tar', '-o', 'out'], 'train-0.tar'),
        (['images', '-o', 'taken'], 'taken'),
    ],
)
def test_mistakes_end_in_one_line(run, images, tmp_path, arguments, words):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'taken').write_text('')
    code, _, err = run(*arguments)
    assert code == 2
    assert words in err.splitlines()[-1] and err.splitlines()[-1].startswith('to_shards: ')
    assert not (tmp_path / 'out').exists()
