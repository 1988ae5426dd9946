import json
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS

sys.path.insert(0, str(Path(__file__).parents[2] / 'tools'))
import demo

from poa_mm.evaluation.scorecard_files import read_scorecard

OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ('swint_digits', 'resnet_digits')]


@pytest.mark.parametrize('name', ['vitt_digits', *OTHERS])
def test_demo_in_small(name, tmp_path, monkeypatch, capsys):
    config = demo.CONFIG.with_stem(name)
    options = ['train_cfg.max_iters=2', 'train_dataloader.batch_size=8']
    arguments = [] if config == demo.CONFIG else [str(config)]
    monkeypatch.setattr(sys, 'argv', ['demo.py', *arguments, '--work-dir', str(tmp_path), '--cfg-options', *options])
    if config == demo.CONFIG:  # the other ones, which are slow, export
        monkeypatch.setattr(demo, 'export', lambda checkpoint, subnet, to, out_dir: [])
    demo.main()

    report = json.loads((tmp_path / 'report.json').read_text())
    subnets = set(map(str, MODELS.build(Config.fromfile(config).model.backbone).space))
    assert set(report) == {*('knn_before', 'knn_after', 'seconds', 'extracted', 'chosen', 'exported', 'not_exported')}
    assert set(report['knn_before']) == set(report['knn_after']) == subnets
    assert all(0 <= score <= 1 for part in ('knn_before', 'knn_after') for score in report[part].values())
    assert max(report['knn_before'].values()) < 0.9, 'what training has to add can be seen'
    assert len(report['extracted']) == 3
    assert max(report['extracted'].values()) <= 1e-4
    assert report['seconds'] > 0
    assert (tmp_path / 'knn.png').stat().st_size > 10_000
    assert len(list((tmp_path / 'subnets').glob('*.safetensors'))) == 3
    card = read_scorecard(tmp_path / 'scorecard' / 'scorecard.json')
    assert {row['subnet'] for row in card['subnets']} == subnets and report['chosen'] in subnets
    assert {row['subnet']: row['scores']['knn'] for row in card['subnets']} == report['knn_after']
    if config != demo.CONFIG:
        assert {*report['exported'], *report['not_exported']} == {'timm', 'huggingface', 'onnx', 'torch'}
        assert all(difference <= 1e-4 for difference in report['exported'].values())
    screen = ''.join(capsys.readouterr())
    assert 'k-NN accuracy on held-out digits' in screen
    assert 'pre-training: 2/2 steps, left 0:00:00 loss' in screen
    assert len(screen.splitlines()) <= 50
    assert 'OneDL' not in screen and 'System environment' not in screen
    assert 'System environment' in next((tmp_path / 'train').glob('*/*.log')).read_text()


def test_the_screen_stays_short(tmp_path):
    """In a process of its own, with all that libraries say when they are imported."""
    options = ['recipe.max_iters=4', 'train_dataloader.batch_size=8']
    command = [sys.executable, demo.__file__, '--work-dir', tmp_path / 'demo', '--cfg-options', *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    screen = done.stdout + done.stderr
    assert len(screen.splitlines()) <= 50
    assert 'OneDL' not in screen and 'System environment' not in screen
    assert 'loss' in screen and 'k-NN accuracy on held-out digits' in screen
