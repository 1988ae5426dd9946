"""Commands in README and docs: tools, options, configs and make targets that they name are there."""

import argparse
import importlib.util
import re
import sys
from functools import cache

import pytest
from documented import PAGES, ROOT, blocks, lines, words

OTHER_PROGRAMS = {'pip', 'mim', 'source', 'torchrun', 'pre-commit', 'cd', 'ls', 'cat', 'git', 'export'}
HANDS_OVER = {'tools/select_subnet.py': 'tools/export_subnet.py'}  # what it does not know itself


COMMANDS = [
    pytest.param(line, id=f'{page.stem}: {line[:60]}')
    for page in PAGES
    for _, block in blocks(page, 'bash')
    for line in lines(block)
]


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
    while command and re.match(r'\w+=', command[0]):
        command.pop(0)
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


@pytest.mark.parametrize('line', [param for param in COMMANDS if 'pip install' in param.values[0]])
def test_what_pip_installs_is_what_make_env_installs(line):
    pins = (ROOT / 'requirements' / 'onedl.txt').read_text().splitlines()
    extras = {path.stem for path in (ROOT / 'requirements').glob('*.txt')}
    for word in words(line.replace('[', ':').replace(']', '')):
        if '==' in word:
            assert word in pins
        if ':' in word:
            assert word.partition(':')[2] in extras
        if word.startswith('requirements/'):
            assert (ROOT / word).is_file()


@pytest.mark.parametrize('line', [param for param in COMMANDS if param.values[0].startswith('mim')])
def test_what_mim_runs_is_there(line):
    _, command, package, what, *arguments = words(line)
    assert command in ('train', 'test', 'run')
    if package == 'poa_mm':
        folder, name = ('tools', f'{what}.py') if command == 'run' else ('configs', what)
        assert list((ROOT / folder).rglob(name))
    if command == 'run':
        assert {word for word in arguments if word.startswith('-')} <= options_of(ROOT / 'tools' / f'{what}.py')
