import pytest
import torch

from poa_mm.deploy.extract import _write_weights
from poa_mm.deploy.staged_files import StagedFiles


def test_files_appear_together_at_the_end(tmp_path):
    with StagedFiles(tmp_path / 'a' / 'b') as files:
        files.add('one', lambda path: path.write_text('1'))
        files.add('two', lambda path: path.write_text('2'))
        assert not (tmp_path / 'a' / 'b' / 'one').exists()
    assert {path.name: path.read_text() for path in (tmp_path / 'a' / 'b').iterdir()} == {'one': '1', 'two': '2'}


def test_existing_files_survive_a_failure(tmp_path):
    (tmp_path / 'one').write_text('old')
    with pytest.raises(ZeroDivisionError), StagedFiles(tmp_path) as files:
        files.add('one', lambda path: path.write_text('new'))
        files.add('two', lambda path: path.write_text(f'{1 / 0}'))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {'one': 'old'}


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / 'out').write_text('')
    with pytest.raises(OSError), StagedFiles(tmp_path / 'out'):
        pass


@pytest.mark.parametrize('name', ['../one', '/tmp/one', '/one', 'a/../one', 'a/b/one', 'a/', '.', '..', ''])
def test_nothing_gets_out_of_the_folder(tmp_path, name):
    with pytest.raises(ValueError, match='is not the name of a file'), StagedFiles(tmp_path / 'out') as files:
        files.add(name, lambda path: path.write_text('1'))
    assert not list(tmp_path.iterdir())


def test_files_in_a_folder_in_the_folder(tmp_path):
    with StagedFiles(tmp_path / 'out') as files:
        files.add('a/one', lambda path: path.write_text('1'))
        files.add('two', lambda path: path.write_text('2'))
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob('*') if path.is_file()} == {
        'out/a/one', 'out/two'
    }  # fmt: skip


@pytest.mark.parametrize('existing', [False, True])
def test_new_folders_go_when_something_fails(tmp_path, existing):
    if existing:
        (tmp_path / 'out' / 'a').mkdir(parents=True)
        (tmp_path / 'out' / 'a' / 'one').write_text('old')
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(ZeroDivisionError), StagedFiles(tmp_path / 'out') as files:
        files.add('a/one', lambda path: path.write_text('1'))
        files.add('b/two', lambda path: path.write_text(f'{1 / 0}'))
    assert sorted(tmp_path.rglob('*')) == before
    assert not existing or (tmp_path / 'out' / 'a' / 'one').read_text() == 'old'


LIMIT = 50_000  # bytes of a file


@pytest.fixture
def no_room():
    """A limit on the size of files, which stands in for a full disk."""
    resource = pytest.importorskip('resource')
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize('format', ['safetensors', 'pth'])
def test_no_room(tmp_path, no_room, format):
    state = {'weight': torch.zeros(LIMIT)}
    with pytest.raises(OSError, match=rf'too large.*out/weights.{format}'), StagedFiles(tmp_path / 'out') as files:
        files.add('small.json', lambda path: path.write_text('{}'))
        files.add(f'weights.{format}', lambda path: _write_weights(path, format, state, {}))
    assert not (tmp_path / 'out').exists()
