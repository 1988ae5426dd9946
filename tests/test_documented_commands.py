"""Commands in README and docs: tools, options, configs and make targets that they name are there."""

import argparse
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
OTHER_PROGRAMS = {'pip', 'mim', 'source', 'torchrun', 'pre-commit', 'cd', 'ls', 'cat', 'git', 'export'}
HANDS_OVER = {'tools/select_subnet.py': 'tools/export_subnet.py'}  # what it does not know itself


def commands(page):
    """Command lines of the bash blocks of a page, without comments, one each."""
    for block in re.findall(r'```bash\n(.*?)```', page.read_text(), flags=re.S):
        for line in re.sub(r'\\\n\s*', ' ', block).splitlines():
            line = re.sub(r'(^|\s)#.*', '', line).strip()
            if line:
                yield line


def words(line):
    """Of a command, without optional brackets and without variables that are set before it."""
    found = shlex.split(re.sub(r'[\[\]]', ' ', line))
    while found and re.match(r'\w+=', found[0]):
        found.pop(0)
    return found


COMMANDS = [pytest.param(line, id=f'{page.stem}: {line[:60]}') for page in PAGES for line in commands(page)]


@cache
def options_of(tool):
    """Options that a tool declares."""

    class FoundParser(Exception):
        pass

    def stop(parser, *args, **kwargs):
        raise FoundParser(parser)

    spec = importlib.util.spec_from_file_location(f'documented_{tool.stem}', tool)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'path', [str(tool.parent), *sys.path])
        spec.loader.exec_module(module)
        patch.setattr(argparse.ArgumentParser, 'parse_args', stop)
        patch.setattr(argparse.ArgumentParser, 'parse_known_args', stop)
        with pytest.raises(FoundParser) as found:
            (getattr(module, 'parse_args', None) or module.main)()
    return {option for action in found.value.args[0]._actions for option in action.option_strings}


def test_there_are_commands():
    assert len(COMMANDS) > 20


@pytest.mark.parametrize('line', COMMANDS)
def test_command_names_what_is_there(line):
    command = words(line)
    if not command:
        return  # a variable is set
    program, *arguments = command
    if program == 'make':
        targets = re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), flags=re.M)
        assert {word for word in arguments if '=' not in word} <= set(targets)
    elif program in ('python', 'torchrun') and (tools := [word for word in arguments if word.endswith('.py')]):
        check_tool(tools[0], arguments[arguments.index(tools[0]) + 1 :])
    elif program.endswith('.sh'):
        assert (ROOT / program).is_file()
        if 'train' in program:
            check_tool('tools/train.py', arguments)
    else:
        assert program in OTHER_PROGRAMS, f'what is {program}?'
    for word in arguments:
        if re.fullmatch(r'(configs|docs|requirements)/[\w./-]+', word):
            assert (ROOT / word).exists(), word


def check_tool(tool, arguments):
    assert (ROOT / tool).is_file(), tool
    given = {word.partition('=')[0] for word in arguments if re.match(r'--?[a-z]', word)}
    known = options_of(ROOT / tool)
    if tool in HANDS_OVER:
        known |= options_of(ROOT / HANDS_OVER[tool])
    assert given <= known


@pytest.mark.slow
def test_the_tour_runs(tmp_path):
    """README's first block of commands after `make demo`, on a shorter demo, as it stands."""
    for name in ('tools', 'configs'):
        (tmp_path / name).symlink_to(ROOT / name)
    run = dict(cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(ROOT)}, capture_output=True, text=True)
    demo = subprocess.run(
        [sys.executable, 'tools/demo.py', '--cfg-options', 'recipe.max_iters=4', 'recipe.warmup_iters=1'], **run
    )
    assert demo.returncode == 0, demo.stderr[-2000:]
    blocks = re.findall(r'```bash\n(.*?)```', (ROOT / 'README.md').read_text(), flags=re.S)
    tour = next(block for block in blocks if block.startswith('CHECKPOINT='))
    done = subprocess.run(
        ['bash', '-e', '-c', tour.replace('iter_1000', 'iter_4').replace('python ', f'{sys.executable} ')], **run
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for path in ('scores/knn.png', 'subnets/poa_48x3.safetensors', 'subnets/poa_96x6.py', 'exported/manifest.json'):
        assert (tmp_path / 'work_dirs' / path).is_file()
