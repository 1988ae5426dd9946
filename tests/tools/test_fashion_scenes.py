import json
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

TOOL = Path(__file__).parents[2] / 'tools' / 'dataset_converters' / 'fashion_scenes.py'
QUICK = ['--source', 'digits', '--train', '3', '--val', '2']


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Runs the tool as a command and gives its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', [str(TOOL), *arguments])
        capfd.readouterr()
        code = 0
        try:
            runpy.run_path(str(TOOL), run_name='__main__')
        except SystemExit as stop:
            code = stop.code
        return code, *capfd.readouterr()

    return run


def test_writes_both_layouts(run, tmp_path):
    options = ['--size', '64', '96', '--objects', '2', '3', '--names', 'library', '--seed', '5']
    code, _, err = run('data', *QUICK, *options)
    assert code == 0
    assert 'scenes: 5/5' in err
    content = json.loads((tmp_path / 'data/coco/annotations/instances_train2017.json').read_text())
    assert len(content['images']) == 3 and len(content['categories']) == 80
    assert 3 <= len(content['annotations']) <= 9
    assert 'seed 5' in content['info']['description']
    assert Image.open(tmp_path / 'data/ade/ADEChallengeData2016/images/validation/ADE_val_00000002.jpg').size == (
        96,
        64,
    )


def test_one_number_is_the_side_of_a_square(run, tmp_path):
    assert run('data', *QUICK, '--size', '48')[0] == 0
    assert Image.open(tmp_path / 'data/coco/train2017/000000000001.jpg').size == (48, 48)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['data'], 'no elsewhere/train-images-idx3-ubyte'),
        (['full', *QUICK], 'full exists and is not an empty folder'),
        (['data', *QUICK, '--size', '16'], 'size'),
        (['data', *QUICK, '--size', '64', '64', '64'], 'size'),
        (['data', *QUICK, '--objects', '3', '2'], 'objects'),
        (['data', *QUICK, '--source', 'cifar'], 'cifar'),
    ],
)
def test_what_users_get_wrong_is_one_line(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.setenv('POA_FMNIST', 'elsewhere')
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'file').touch()
    code, _, err = run(*arguments)
    assert code == 2
    assert message in err.splitlines()[-1] and 'Traceback' not in err
    assert [path.name for path in tmp_path.iterdir()] == ['full']
