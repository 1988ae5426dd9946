"""What would make a build fail later is said at once; nothing is built here."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / 'tools' / 'make_env.sh'
NEEDED = ('bash', 'sha256sum', 'cut', 'cat', 'uname', 'dirname', 'mkdir', 'df', 'awk', 'flock')
FAKE_PYTHON = """#!/bin/bash
case "$*" in
  *version_info*) echo "$FAKE_VERSION" ;;
  *Python.h*) echo "$FAKE_HEADER" ;;
  -VV) echo "Python $FAKE_VERSION" ;;
  *) exit 1 ;;
esac
"""


@pytest.fixture
def machine(tmp_path):
    """A folder of commands to stand for a machine, on which everything is as it should be."""
    commands = tmp_path / 'bin'
    commands.mkdir()
    for name in NEEDED:
        path = subprocess.run(['bash', '-c', f'command -v {name}'], capture_output=True, text=True).stdout.strip()
        (commands / name).symlink_to(path)
    for name in ('gcc', 'g++'):
        (commands / name).symlink_to('/bin/true')
    (commands / 'python3').write_text(FAKE_PYTHON)
    (commands / 'python3').chmod(0o755)
    return commands


def make_env(machine, *args, **env):
    settings = dict(
        PATH=str(machine),
        HOME=str(machine.parent),
        FAKE_VERSION='3.11',
        FAKE_HEADER=str(SCRIPT),  # any file that is there
        POA_MM_ENVS=str(machine.parent / 'envs'),
    )
    return subprocess.run(['bash', SCRIPT, *args], env=settings | env, capture_output=True, text=True)


def test_unknown_stack(machine):
    done = make_env(machine, 'pytorch')
    assert done.returncode == 1
    assert "unknown stack 'pytorch'; valid: onedl, openmmlab, light" in done.stderr


@pytest.mark.parametrize(('stack', 'version'), [('onedl', '3.13'), ('openmmlab', '3.12')])
def test_no_suitable_python(machine, stack, version):
    done = make_env(machine, stack, FAKE_VERSION=version)
    assert done.returncode == 1
    assert f"stack '{stack}' needs Python 3.11 or 3.10" in done.stderr


def test_a_python_of_pyenv_that_is_not_active(machine):
    (machine / 'python3').rename(machine / 'hidden')
    interpreter = machine.parent / '.pyenv' / 'versions' / '3.11.7' / 'bin' / 'python'
    interpreter.parent.mkdir(parents=True)
    interpreter.symlink_to(machine / 'hidden')
    assert 'Python headers are missing' in make_env(machine, FAKE_HEADER='/nowhere').stderr


def test_no_compiler(machine):
    (machine / 'g++').unlink()
    assert 'gcc and g++ are needed' in make_env(machine).stderr


def test_no_headers(machine):
    assert 'Python headers are missing: /nowhere/Python.h' in make_env(machine, FAKE_HEADER='/nowhere/Python.h').stderr


def free_gib(machine, gib):
    (machine / 'df').unlink()
    (machine / 'df').write_text(f'#!/bin/bash\necho Filesystem\necho "x 9 9 {gib * 2**20} 9% /"\n')
    (machine / 'df').chmod(0o755)


def test_no_disk(machine):
    free_gib(machine, 3)
    assert 'has 3 GiB free, 14 GiB are needed' in make_env(machine).stderr


def test_the_light_stack_needs_no_compiler_and_less_disk(machine):
    (machine / 'g++').unlink()
    free_gib(machine, 9)
    assert 'has 9 GiB free, 10 GiB are needed' in make_env(machine, 'light', FAKE_HEADER='/nowhere').stderr


def test_only_if_ready(machine):
    """`make demo` asks so; nothing is built and nothing said."""
    done = make_env(machine, '--ready', 'onedl')
    assert (done.returncode, done.stdout, done.stderr) == (1, '', '')


def test_a_build_that_fails_is_not_taken_for_an_environment(machine):
    """With all checks passed, the fake interpreter cannot make an environment."""
    (machine / 'date').symlink_to('/bin/date')
    (machine / 'rm').symlink_to('/bin/rm')
    free_gib(machine, 99)
    done = make_env(machine)
    assert done.returncode == 1
    assert "'python3 -m venv' failed" in done.stderr
    assert not list((machine.parent / 'envs').glob('*/.ready'))


def test_a_ready_environment_is_found_again(machine):
    missing = make_env(machine, FAKE_HEADER='/nowhere')  # stops after the name is known
    assert missing.returncode == 1
    key = subprocess.run(
        ['bash', '-c', f'cd {SCRIPT.parents[1]}/requirements && {{ cat onedl.txt onedl-build.txt runtime.txt dev.txt '
         f'export.txt datasets.txt docs.txt {SCRIPT}; echo "Python 3.11"; uname -sm; }} | sha256sum | cut -c1-12'],
        capture_output=True,
        text=True,
        env={**os.environ},
    ).stdout.strip()  # fmt: skip
    env = machine.parent / 'envs' / f'onedl-{key}'
    env.mkdir(parents=True)
    (env / '.ready').touch()
    for arguments in ([], ['--ready', 'onedl']):
        done = make_env(machine, *arguments, FAKE_HEADER='/nowhere')
        assert done.returncode == 0
        assert done.stdout.strip() == str(env)
