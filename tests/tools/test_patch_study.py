import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / 'tools'))
import patch_study as tool

from poa_mm.study.patch_sizes import Trained


def main(monkeypatch, *words):
    monkeypatch.setattr(sys, 'argv', ['patch_study.py', *map(str, words)])
    return tool.main()


def test_seeds_are_trained_and_the_table_is_written(monkeypatch, tmp_path, capsys):
    calls = []

    def compare(*args):
        calls.append(args)
        args[0].mkdir()
        return [Trained(sizes, 7, {(48, 2, 4): 0.5}, 60.0, 5) for sizes in ('all', '4')]

    monkeypatch.setattr(tool, 'compare_patch_sizes', compare)
    assert main(monkeypatch, '--seeds', 7, '--work-dir', tmp_path / 'work') == 0
    assert calls == [(tmp_path / 'work', [7])]
    assert '| 48x2 | 50.0 | 50.0 |' in capsys.readouterr().out
    assert '| 48x2 | 50.0 | 50.0 |' in (tmp_path / 'work' / 'table.md').read_text()


def test_missing_images_are_said_in_a_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv('POA_FMNIST', str(tmp_path / 'nowhere'))
    assert main(monkeypatch, '--seeds', 0, '--work-dir', tmp_path / 'work') == 2
    assert 'nowhere' in capsys.readouterr().err
