"""What a user can mend is said in one line; a fault of this code keeps its traceback."""

from __future__ import annotations

import argparse
import builtins
import dis
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

DEBUG = 'POA_MM_DEBUG'  # environment variable: the traceback, too
MISTAKE, FAILED, INTERRUPTED = 2, 1, 130  # exit codes
HEAD_START = 2.0  # seconds in which rank 0 says what all ranks have to say
PACKAGE = Path(__file__).parent
OWN = (PACKAGE, PACKAGE.parent / 'tools')
LIBRARIES = ('mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'mmseg')
WORKER = re.compile(r'Caught (\w+) in DataLoader worker process')
LOST = re.compile(r'Connection (closed by|reset by) peer|remote process exited|NCCL .*remote', re.IGNORECASE)


class UserError(Exception):
    """Base of errors that a user can mend, wherever they are raised: the message says what is wrong and what to do."""


def add_debug(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--debug``."""
    parser.add_argument('--debug', action='store_true', help='show where in the code an error comes from')


def check_out_dir(folder: str | os.PathLike) -> None:
    """Check that files can be written into a folder, which may be missing, before any work is done for them.

    Args:
        folder: The folder.

    Raises:
        NotADirectoryError: If it, or what it would lie in, is a file.
        PermissionError: If this user must not write there.
    """
    path = Path(folder).absolute()
    there = next(one for one in (path, *path.parents) if os.path.lexists(one))
    if not there.is_dir():
        raise NotADirectoryError(f'{folder}: a folder is needed to write to, and {there} is a file')
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f'{folder}: nothing can be written there: no permission for {there}')


def check_out_file(path: str | os.PathLike) -> None:
    """Check that a file can be written, before any work is done for it. An existing one would be replaced.

    Args:
        path: The file.

    Raises:
        IsADirectoryError: If it is a folder.
        OSError: As :func:`check_out_dir` of the folder that it is in.
    """
    if Path(path).is_dir():
        raise IsADirectoryError(f'{path}: the name of a file is needed, and this is a folder')
    check_out_dir(Path(path).absolute().parent)


class Frame(NamedTuple):
    """One call on the way to an error.

    Args:
        module: Name of its module.
        function: Name of the function.
        own: Whether it is code of this project.
        raised: Whether it stands at a ``raise`` or ``assert``, rather than at something that failed.
    """

    module: str
    function: str
    own: bool
    raised: bool


def run_tool(
    name: str, function: Callable[..., Any], *args: Any, debug: bool = False, interrupted: str = 'interrupted'
) -> int:
    """Call ``function``, the work of a command, and say in one line what its user got wrong.

    Where many processes run, each says it for itself, rank 0 first: what has ended them all is then said once.

    Args:
        name: Of the tool, which the line begins with.
        function: Called with ``args``.
        debug: Print the traceback before the line. The environment variable ``POA_MM_DEBUG`` does so, too.
        interrupted: What is said after Ctrl-C. Default: ``'interrupted'``.

    Returns:
        The exit code: what ``function`` returns if that is a number, else 0; 2 after a mistake of the user, 1 if
        another process has failed, 130 after Ctrl-C.

    Raises:
        Exception: Any error that is none of the user's (:func:`is_mistake`).
    """
    try:
        result = function(*args)
    except KeyboardInterrupt:
        print(f'{name}: {interrupted}', file=sys.stderr, flush=True)
        return INTERRUPTED
    except Exception as error:
        if is_mistake(error):
            code, line = MISTAKE, one_line(error)
        elif _is_lost_process(error):
            code, line = FAILED, f'lost the other processes, one of which says why ({one_line(error)[:200]})'
        else:
            raise
        if debug or os.environ.get(DEBUG, '0') not in ('', '0'):
            traceback.print_exc()
    else:
        return result if type(result) is int else 0
    if int(os.environ.get('RANK', 0)):
        time.sleep(HEAD_START)
    sys.stdout.flush()
    print(f'{name}: error: {line}', file=sys.stderr, flush=True)
    return code


def is_mistake(error: BaseException) -> bool:
    """Whether an error is one that a user can mend, by its kind and by where it comes from.

    - A :class:`UserError`, what the operating system refuses (``OSError``), a package that is missing, a full GPU:
      always.
    - A ``ValueError`` or ``TypeError`` that this project raises in so many words, unless a training step was on: these
      are its checks. What Python itself raises in this project's code is a fault of it.
    - What a library says while it builds something from the config, or when it checks what it was given.
    """
    if isinstance(error, (UserError, OSError)):
        return True
    if isinstance(error, ImportError):
        return not (error.name or '').startswith('poa_mm')
    if type(error).__name__ == 'OutOfMemoryError':  # torch's; this module imports nothing heavy
        return True
    if isinstance(error, RuntimeError) and "can't allocate memory" in _text(error):  # the same, on CPUs
        return True
    if match := WORKER.match(_text(error)):
        return _is_mistake_by_name(match[1])
    frames = list(_frames(error.__traceback__))
    if not frames or any(frame.function == 'run_iter' for frame in frames):
        return False
    building, last = any(map(_builds, frames)), frames[-1]
    if last.own:
        wrong_call = building and isinstance(error, TypeError) and 'argument' in str(error)
        return wrong_call or (last.raised and isinstance(error, (ValueError, TypeError)))
    if building:
        return isinstance(error, (ValueError, TypeError, LookupError, AssertionError, AttributeError, RuntimeError))
    checked = last.raised and last.module.split('.')[0] in LIBRARIES
    return isinstance(error, ValueError) or (checked and isinstance(error, (TypeError, LookupError, AssertionError)))


def one_line(error: BaseException) -> str:
    """What an error says, on one line, with its kind where the words alone may not tell."""
    text = _text(error)
    if WORKER.match(text):  # a traceback as text, whose last line is the message, after the name of its class
        text = text.strip().splitlines()[-1]
        return ' '.join(text.partition(': ')[2].split()) or text
    text = ' '.join(text.split())
    if isinstance(error, (UserError, OSError)) or (isinstance(error, ValueError) and text):
        return text or type(error).__name__
    return f'{type(error).__name__}: {text} (--debug shows where)' if text else f'{type(error).__name__}{_place(error)}'


def _text(error: BaseException) -> str:
    # A KeyError quotes its text, which may be a sentence.
    return str(error.args[0]) if isinstance(error, KeyError) and len(error.args) == 1 else str(error)


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f' at {frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}' if frames else ''


def _frames(trace: TracebackType | None) -> Iterator[Frame]:
    while trace is not None:
        code = trace.tb_frame.f_code
        file = Path(code.co_filename)
        yield Frame(
            module=trace.tb_frame.f_globals.get('__name__', ''),
            function=code.co_name,
            own=any(folder in file.parents for folder in OWN),
            raised=dis.opname[code.co_code[trace.tb_lasti]] == 'RAISE_VARARGS',
        )
        trace = trace.tb_next


def _builds(frame: Frame) -> bool:
    """Whether a call of mmengine builds something from a config."""
    if frame.module.startswith('mmengine.registry'):
        return True
    in_runner = frame.module.startswith(('mmengine.runner', 'mmengine._strategy', 'mmengine.visualization'))
    return in_runner and (frame.function in ('__init__', 'from_cfg') or frame.function.startswith('build_'))


def _is_mistake_by_name(name: str) -> bool:
    """The same of the name of a class, which is all that a data-loading worker hands over."""
    kinds = [UserError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    if name in {kind.__name__ for kind in kinds}:
        return True
    known = getattr(builtins, name, None)
    return isinstance(known, type) and issubclass(known, OSError)


def _is_lost_process(error: BaseException) -> bool:
    """Whether an error is that of a process which waits for one that has ended."""
    is_distributed = type(error).__name__ in ('DistBackendError', 'DistNetworkError', 'RuntimeError')
    return 'RANK' in os.environ and is_distributed and LOST.search(str(error)) is not None
