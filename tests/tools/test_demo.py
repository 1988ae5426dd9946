import json
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

sys.path.insert(0, str(Path(__file__).parents[2] / 'tools'))
import demo


def test_demo_in_small(tmp_path, monkeypatch, capsys):
    options = ['train_cfg.max_iters=2', 'train_dataloader.batch_size=8', 'log_level=ERROR']
    monkeypatch.setattr(sys, 'argv', ['demo.py', '--work-dir', str(tmp_path), '--cfg-options', *options])
    demo.main()

    report = json.loads((tmp_path / 'report.json').read_text())
    backbone = Config.fromfile(demo.CONFIG).model.backbone
    subnets = {f'{width}x{depth}' for width in backbone.widths for depth in backbone.depths}
    assert set(report) == {'knn_before', 'knn_after', 'seconds', 'extracted'}
    assert set(report['knn_before']) == set(report['knn_after']) == subnets
    assert all(0 <= score <= 1 for part in ('knn_before', 'knn_after') for score in report[part].values())
    assert sum(report['knn_before'].values()) / len(subnets) == pytest.approx(0.1, abs=0.06), 'untrained is chance'
    assert len(report['extracted']) == 3
    assert max(report['extracted'].values()) <= 1e-4
    assert report['seconds'] > 0
    assert (tmp_path / 'knn.png').stat().st_size > 10_000
    assert len(list((tmp_path / 'subnets').glob('*.safetensors'))) == 3
    assert 'k-NN accuracy on held-out digits' in capsys.readouterr().out
