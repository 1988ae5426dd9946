import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'benchmarks'))
import demo_seeds

RESULTS = dict(
    seeds={
        '0': dict(before={'48x3': 0.1, '96x6': 0.15}, after={'48x3': 0.94, '96x6': 0.975}, seconds=200),
        '1': dict(before={'48x3': 0.12, '96x6': 0.09}, after={'48x3': 0.96, '96x6': 0.97}, seconds=260),
    },
)


def test_the_lowest_and_the_highest_of_all_seeds():
    text = demo_seeds.describe(RESULTS)
    assert 'its 2 sizes' in text and '(seeds 0, 1)' in text
    assert '0.940 to 0.975 after pre-training, 0.090 to 0.150 before' in text
    assert 'moves by up to 0.020. The' in text and '200 to 260 s' in text
    assert all(len(line) <= 120 for line in text.splitlines())


def test_only_what_is_between_the_comments_changes(tmp_path):
    path = tmp_path / 'README.md'
    path.write_text(f'before\n{demo_seeds.BEGIN}\nold\n{demo_seeds.END}\nafter\n')
    demo_seeds.write_readme(RESULTS, path)
    text = path.read_text()
    assert text == f'before\n{demo_seeds.BEGIN}\n{demo_seeds.describe(RESULTS)}\n{demo_seeds.END}\nafter\n'


def test_readme_says_what_was_measured():
    readme = demo_seeds.README.read_text()
    if not demo_seeds.JSON.exists():
        pytest.skip('no docs/evidence/demo.json yet: benchmarks/demo_seeds.py writes it')
    assert demo_seeds.describe(json.loads(demo_seeds.JSON.read_text())) in readme


@pytest.mark.slow
def test_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    (tmp_path / 'README.md').write_text(f'{demo_seeds.BEGIN}\n{demo_seeds.END}\n')
    arguments = ['--json', str(tmp_path / 'demo.json'), '--readme', str(tmp_path / 'README.md')]
    arguments += ['--work-dir', str(tmp_path), '--cfg-options', 'recipe.max_iters=2', 'recipe.batch_size=8']
    for seeds in (['0'], ['0', '1']):
        monkeypatch.setattr(sys, 'argv', ['demo_seeds.py', '--seeds', *seeds, *arguments])
        demo_seeds.main()
    runs = json.loads((tmp_path / 'demo.json').read_text())['seeds']
    assert list(runs) == ['0', '1'] and len(list(tmp_path.glob('seed_*'))) == 2
    assert runs['0']['after'] != runs['1']['after']
    assert '(seeds 0, 1)' in capsys.readouterr().out
