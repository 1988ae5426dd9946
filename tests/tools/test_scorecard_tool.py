import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / 'tools'))
import scorecard as tool

CONFIG = str(Path(__file__).parents[2] / 'configs' / 'poa' / 'vitt_digits.py')


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """The digits supernet with random weights."""
    from mmengine.config import Config
    from mmpretrain.registry import MODELS

    from poa_mm.checkpoint import describe_supernet

    cfg = Config.fromfile(CONFIG)
    backbone = MODELS.build(cfg.model.backbone)
    backbone.init_weights()
    state = {f'teacher.backbone.{key}': value for key, value in backbone.state_dict().items()}
    path = tmp_path_factory.mktemp('tool') / 'supernet.pth'
    torch.save({'state_dict': state, 'poa': describe_supernet(cfg.model)}, path)
    return str(path)


def test_arguments_reach_the_scorecard(checkpoint, tmp_path, capsys, monkeypatch):
    from poa_mm.evaluation.scorecard_files import read_scorecard

    monkeypatch.setattr('poa_mm.evaluation.measurement.time_visit', lambda run, clock: [0.002, 0.004])
    monkeypatch.setattr('poa_mm.evaluation.runtimes.TorchRuntime.peak_memory', lambda *args: 1000)
    options = ['--batch', '1', '3', '--protocol', 'linear', '--rounds', '1', '--threads', '2', '--measure-all']
    options += ['--cfg-options', 'knn.query.dataset.split=train']
    assert tool.main([CONFIG, checkpoint, '-o', str(tmp_path), *options]) == 0
    card = read_scorecard(tmp_path / 'scorecard.json')
    assert card['conditions'] == ['torch-cpu-b1', 'torch-cpu-b3'] and card['protocols'] == ['linear']
    assert (card['threads'], card['rounds'], card['measure_all']) == (2, 1, True)
    assert card['subnets'][0]['costs']['torch-cpu-b3']['median_ms'] == pytest.approx(3)
    out, err = capsys.readouterr()
    assert 'all 16 subnets measured' in out and 'scorecard.html' in out
    assert '16/16 turns' in err, 'progress is shown'


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['none.py', 'none.pth'], 'none.py'),
        ([CONFIG, 'none.pth'], 'none.pth'),
        ([CONFIG, CONFIG], 'vitt_digits.py'),
        ([CONFIG, 'CHECKPOINT', '--runtime', 'tensorrt'], "runtime 'tensorrt' is not one of torch, onnxruntime"),
        ([CONFIG, 'CHECKPOINT', '--device', 'tpu'], "device 'tpu' is not one of cpu, cuda"),
        ([CONFIG, 'CHECKPOINT', '--batch', '0'], 'batch 0 is not'),
        ([CONFIG, 'CHECKPOINT', '--threads', '-1'], 'threads -1 is not'),
        ([CONFIG, 'CHECKPOINT', '--threads', '100000'], 'threads 100000 are more than the'),
        ([CONFIG, 'CHECKPOINT', '--batch', '9999999999'], 'batch 9999999999 needs about'),
        ([CONFIG, 'CHECKPOINT', '--protocol', 'f1'], 'protocols must be some of knn, linear'),
        ([CONFIG, 'CHECKPOINT', '--cfg-options', 'knn=None'], "no entry 'knn"),
        (
            [CONFIG, 'CHECKPOINT', '--cfg-options', 'model.backbone.img_size=16'],
            'img_size is (16, 16), in the checkpoint (8, 8)',
        ),
    ],
)
def test_what_users_get_wrong_is_one_line_and_nothing_is_written(arguments, message, checkpoint, tmp_path, capsys):
    arguments = [checkpoint if argument == 'CHECKPOINT' else argument for argument in arguments]
    assert tool.main([*arguments, '-o', str(tmp_path / 'new')]) == 2
    err = capsys.readouterr().err
    assert err.startswith('scorecard: error: ') and message in err and err.count('\n') == 1
    assert not (tmp_path / 'new').exists()


def test_a_device_that_is_not_there(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert tool.main([CONFIG, checkpoint, '--device', 'cuda', '-o', str(tmp_path / 'new')]) == 2
    assert "device 'cuda' is not there" in capsys.readouterr().err


def test_a_missing_extra_is_named(checkpoint, tmp_path, capsys, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name == 'onnxruntime' else find(name))
    assert tool.main([CONFIG, checkpoint, '--runtime', 'onnxruntime', '-o', str(tmp_path / 'new')]) == 2
    assert "pip install 'poa_mm[export]'" in capsys.readouterr().err


def test_interrupted(checkpoint, tmp_path, capsys, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr('poa_mm.evaluation.scorecard.make_scorecard', stop)
    assert tool.main([CONFIG, checkpoint, '-o', str(tmp_path)]) == 130
    assert 'the same command goes on' in capsys.readouterr().err
