"""The structure that docs promise: rooms that know of lower ones only, no circle, no long file."""

import ast
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / 'poa_mm').rglob('*.py'))
# From the bottom to the top; rooms of one floor do not know each other.
FLOORS = (
    ('version', 'compat', 'elastic', 'mistakes', 'recipes'),
    ('main_process',),
    ('checkpoint',),
    ('models', 'datasets'),
    ('engine',),
    ('evaluation',),
    ('deploy',),
    ('study',),
    ('apis',),
)


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = {module_name(path): path for path in FILES}


def imported(path):
    """Modules of the package that a file imports, wherever in it."""
    name = module_name(path)
    package = name if path.name == '__init__.py' else name.rpartition('.')[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit('.', node.level - 1)[0] if node.level else ''
            base = '.'.join(filter(None, (base, node.module)))
            # A name may be a module of a package; otherwise it is in the package itself.
            targets = [full if (full := f'{base}.{alias.name}') in MODULES else base for alias in node.names]
        else:
            continue
        yield from (target for target in targets if target in MODULES and target != name)


GRAPH = {name: set(imported(path)) for name, path in MODULES.items()}


def test_there_is_something_to_look_at():
    assert 'poa_mm.models.selfsup.poa' in GRAPH['poa_mm.models.selfsup']
    assert 'poa_mm.elastic' in GRAPH['poa_mm.models.selfsup.poa']


def test_no_circle_of_imports():
    # Importing a module runs its packages first, but those only list what is in them.
    graph = {name: targets - {name.rpartition('.')[0]} for name, targets in GRAPH.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(' -> '.join(error.args[1]))


def floor_of(name):
    """Height of the room of a module; of the package itself, which knows all, the top."""
    room = name.split('.')[1] if '.' in name else None
    return next((height for height, rooms in enumerate(FLOORS) if room in rooms), len(FLOORS))


@pytest.mark.parametrize('name', [name for name in GRAPH if floor_of(name) < len(FLOORS)])
def test_arrows_point_down(name):
    room = name.split('.')[1]
    others = {target for target in GRAPH[name] if target != 'poa_mm' and target.split('.')[1] != room}
    assert not [target for target in others if floor_of(target) >= floor_of(name)]


@pytest.mark.parametrize('path', FILES, ids=module_name)
def test_no_long_file(path):
    assert len(path.read_text().splitlines()) <= 400


def test_no_two_files_of_tests_have_one_name():
    """Pytest imports them by their name alone."""
    names = [path.name for path in (ROOT / 'tests').rglob('test_*.py')]
    assert sorted(names) == sorted(set(names))


def test_no_two_test_files_have_one_name():
    """Pytest imports them by their names alone, and would collect none of them."""
    counts = Counter(path.name for path in (ROOT / 'tests').rglob('test_*.py'))
    assert [name for name, count in counts.items() if count > 1] == []
