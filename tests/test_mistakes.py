import errno
import os
import subprocess
import sys

import pytest
import torch
from mmengine.registry import MODELS, Registry
from torch.utils.data import DataLoader

from poa_mm import mistakes
from poa_mm.checkpoint import CheckpointError
from poa_mm.checkpoint.atomic_files import CheckpointWriteError
from poa_mm.datasets.transforms.loading import BadImageError
from poa_mm.elastic import Subnet
from poa_mm.engine import BadDataError, NonFiniteError
from poa_mm.engine.launch import init_distributed, read_config
from poa_mm.engine.work_dir import WorkDirError
from poa_mm.mistakes import is_mistake, one_line, run_tool


def failing(function, *args, **kwargs):
    """The error that a call raises, with its traceback."""
    try:
        function(*args, **kwargs)
    except Exception as error:
        return error
    raise AssertionError('no error')


def throw(error):
    raise error


@pytest.mark.parametrize(
    'error',
    [
        CheckpointError('x'),
        CheckpointWriteError(errno.ENOSPC, 'No space left on device', 'x.pth'),
        BadImageError('x'),
        BadDataError('x'),
        NonFiniteError('x'),
        WorkDirError('x'),
        FileNotFoundError(errno.ENOENT, 'No such file or directory', 'x'),
        PermissionError(errno.EACCES, 'Permission denied', 'x'),
        OSError(errno.ELOOP, 'Too many levels of symbolic links', 'x'),
        ModuleNotFoundError('No module named wandb', name='wandb'),
        torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB'),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_of_these_kinds_are_mistakes_anywhere(error):
    assert is_mistake(error)

    def run_iter():
        throw(error)

    assert is_mistake(failing(run_iter))


def build(**cfg):
    return MODELS.build(cfg)


VIT = dict(type='ElasticVisionTransformer', arch='small')


@pytest.mark.parametrize(
    ('call', 'text'),
    [
        (lambda: Subnet.parse('wide'), 'wide'),
        (lambda: init_distributed('carrier pigeon'), "launcher 'carrier pigeon'"),
        (lambda: build(type='NoSuchModel'), 'NoSuchModel is not in the'),
        (lambda: build(**VIT, patchsize=3), 'patchsize'),
        (
            lambda: build(type='mmpretrain.LinearClsHead', num_classes=0, in_channels=3),
            'num_classes=0 must be a positive',
        ),
        (lambda: build(arch='small'), 'must contain the key "type"'),
        (lambda: DataLoader([1, 2], prefetch_factor=4), 'prefetch_factor'),
    ],
)
def test_what_checks_and_builders_say_is_a_mistake(call, text):
    error = failing(call)
    assert is_mistake(error)
    assert text in one_line(error)
    assert '\n' not in one_line(error)


class Faulty:
    """Stands in for code of this project with a fault."""

    def __init__(self, how):
        self.how = how

    def __call__(self, *args):  # noqa: RET503
        match self.how:
            case 'unpack':
                _, _ = [1]
            case 'none':
                return None.shape  # AttributeError
            case 'divide':
                return 1 / 0
            case 'index':
                return [][1]
            case 'key':
                return {}['missing']
            case 'type':
                return 'a' + 1
            case 'raise':
                raise RuntimeError('boom')
            case 'assert':
                assert not self.how, 'invariant'
            case 'convert':
                return int('x')


@pytest.mark.parametrize('how', ['unpack', 'none', 'divide', 'index', 'key', 'type', 'raise', 'assert', 'convert'])
def test_faults_of_our_code_are_none(how, monkeypatch):
    monkeypatch.setattr(mistakes, 'OWN', (mistakes.Path(__file__).parent,))
    assert not is_mistake(failing(Faulty(how)))
    registry = Registry('faulty')
    registry.register_module(module=lambda how: Faulty(how)(), name='Faulty')
    assert not is_mistake(failing(registry.build, dict(type='Faulty', how=how)))


def test_nor_is_what_a_training_step_raises(monkeypatch):
    monkeypatch.setattr(mistakes, 'OWN', (mistakes.Path(__file__).parent,))

    def run_iter(error):
        throw(error)

    for error in (ValueError('shapes'), TypeError('x'), KeyError('x'), RuntimeError('mat1 and mat2')):
        assert not is_mistake(failing(run_iter, error))
    assert is_mistake(failing(throw, ValueError('a check')))
    assert not is_mistake(failing(throw, RuntimeError('boom')))
    assert not is_mistake(failing(throw, ImportError('cannot import name', name='poa_mm.nowhere')))


class Reader:
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 4

    def __getitem__(self, index):
        raise self.error


@pytest.mark.parametrize(
    ('error', 'expected'),
    [
        (BadImageError('it is empty', 'a b.jpg'), 'a b.jpg: it is empty'),
        (FileNotFoundError(errno.ENOENT, 'No such file or directory', 'x.png'), "No such file or directory: 'x.png'"),
        (ZeroDivisionError('division by zero'), None),
        (KeyError('img'), None),
    ],
)
@pytest.mark.parametrize('workers', [0, 1])
def test_errors_of_loading_data(error, expected, workers):
    caught = failing(lambda: next(iter(DataLoader(Reader(error), num_workers=workers))))
    assert is_mistake(caught) == (expected is not None)
    if expected:
        assert one_line(caught).endswith(expected)
        assert 'Traceback' not in one_line(caught)


def test_one_line_names_what_words_alone_do_not():
    assert one_line(ValueError('two\n  lines')) == 'two lines'
    assert (
        one_line(KeyError('Foo is not in the registry')) == 'KeyError: Foo is not in the registry (--debug shows where)'
    )
    assert one_line(failing(throw, AssertionError())).startswith('AssertionError at ')
    assert one_line(OSError(errno.ENOSPC, 'No space left on device', 'f')) == "[Errno 28] No space left on device: 'f'"


def test_run_tool(capsys, monkeypatch):
    assert run_tool('tool', print, 'fine') == 0
    assert run_tool('tool', int, '1') == 1
    assert run_tool('tool', throw, CheckpointError('a\nb')) == 2
    assert capsys.readouterr().err == 'tool: error: a b\n'
    assert run_tool('tool', throw, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == 'tool: interrupted\n'
    with pytest.raises(ZeroDivisionError):
        run_tool('tool', lambda: 1 / 0)
    for debug, variable in ((True, '0'), (False, '1')):
        monkeypatch.setenv('POA_MM_DEBUG', variable)
        assert run_tool('tool', throw, CheckpointError('x'), debug=debug) == 2
        error = capsys.readouterr().err
        assert 'Traceback' in error and error.endswith('tool: error: x\n')


def test_a_process_that_lost_the_others_says_so(capsys, monkeypatch):
    error = RuntimeError('[..gloo/transport/tcp/pair.cc:1] Connection closed by peer [127.0.0.1]:1')
    with pytest.raises(RuntimeError):
        run_tool('tool', throw, error)
    monkeypatch.setenv('RANK', '0')
    assert run_tool('tool', throw, error) == 1
    assert capsys.readouterr().err.startswith('tool: error: lost the other processes')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (b'\xef\xbb\xbfa = 1\n', 'U+FEFF'),
        (b'a = \xe9\n', 'utf-8'),
        (b'a = (1,\n', 'never closed'),
        (b'a = b\n', "name 'b' is not defined"),
        (b"_base_ = 'nowhere.py'\n", 'nowhere.py'),
        (b"custom_imports = dict(imports=['nowhere'])\n", 'nowhere'),
        (b'a = 1 / 0\n', 'division by zero'),
    ],
)
def test_a_config_that_cannot_be_read(tmp_path, text, message):
    path = tmp_path / 'a config.py'
    path.write_bytes(text)
    error = failing(read_config, path)
    assert is_mistake(error)
    assert message in one_line(error) and 'a config.py' in one_line(error)


@pytest.mark.parametrize('name', ['nowhere.py', '', 'config.txt'])
def test_no_config(tmp_path, name):
    (tmp_path / 'config.txt').write_text('a = 1')
    error = failing(read_config, tmp_path / name)
    assert is_mistake(error)
    assert (name or tmp_path.name) in one_line(error)


def test_the_module_is_light():
    """Tools read their arguments before anything heavy is imported."""
    code = 'import sys, importlib.util as u\ns = u.spec_from_file_location("m", sys.argv[1])\n'
    code += (
        'm = u.module_from_spec(s); sys.modules["m"] = m; s.loader.exec_module(m)\nassert "torch" not in sys.modules'
    )
    done = subprocess.run([sys.executable, '-c', code, mistakes.__file__], env={**os.environ, 'PYTHONPATH': ''})
    assert done.returncode == 0
