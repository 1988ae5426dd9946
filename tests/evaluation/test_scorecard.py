import json

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from safetensors import safe_open

from poa_mm.checkpoint import CheckpointError, describe_supernet, file_sha256
from poa_mm.deploy.extract import extract_subnets
from poa_mm.evaluation import evaluate_knn, load_backbone, measurement, scorecard
from poa_mm.evaluation.linear import evaluate_linear
from poa_mm.evaluation.measurement import MeasureSettings
from poa_mm.evaluation.scorecard import file_bytes, make_scorecard
from poa_mm.evaluation.scorecard_files import read_scorecard
from poa_mm.evaluation.selection import choose
from poa_mm.evaluation.unfinished import NAME

BACKBONE = dict(
    type='ElasticVisionTransformer',
    arch=dict(embed_dims=32, num_layers=3, num_heads=4, feedforward_channels=64),
    widths=[16, 24, 32],
    depths=[2, 3],
    aliases={'small': '16x2'},
    img_size=8,
    patch_size=4,
    layer_scale_init_value=1.0,
)
LOADER = dict(batch_size=200, num_workers=0)
CONFIG = dict(
    model=dict(type='POA', backbone=BACKBONE, data_preprocessor=dict(mean=[78.0] * 3, std=[95.0] * 3)),
    knn=dict(
        bank=dict(
            **LOADER, dataset=dict(type='Digits', split='train', indices=300, pipeline=[dict(type='PackInputs')])
        ),
        query=dict(
            **LOADER, dataset=dict(type='Digits', split='test', indices=100, pipeline=[dict(type='PackInputs')])
        ),
    ),
)
SETTINGS = MeasureSettings(rounds=1, batches=(1, 2))


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    backbone = load_random()
    path = tmp_path_factory.mktemp('scorecard') / 'supernet.pth'
    state = {f'teacher.backbone.{key}': value for key, value in backbone.state_dict().items()}
    torch.save({'state_dict': state, 'poa': describe_supernet(CONFIG['model'])}, path)
    return path


def load_random():
    from mmengine.registry import MODELS

    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    backbone = MODELS.build(BACKBONE)
    for param in backbone.parameters():
        torch.nn.init.normal_(param, std=0.2)
    return backbone


@pytest.fixture(scope='module')
def made(checkpoint, tmp_path_factory):
    """The scorecard of two protocols and two batches, and the folder."""
    folder = tmp_path_factory.mktemp('made') / 'new'
    card = make_scorecard(Config(CONFIG), checkpoint, folder, SETTINGS, ['knn', 'linear'], progress=False)
    return card, folder


def test_is_what_the_file_says(made, checkpoint):
    card, folder = made
    assert read_scorecard(folder / 'scorecard.json') == json.loads(json.dumps(card))
    assert card['checkpoint_sha256'] == file_sha256(checkpoint)
    assert card['conditions'] == ['torch-cpu-b1', 'torch-cpu-b2']
    assert sorted(path.name for path in folder.iterdir()) == [
        f'scorecard.{kind}' for kind in ('csv', 'html', 'json', 'md')
    ]


def test_every_subnet_has_its_scores_and_costs(made, checkpoint):
    card, _ = made
    backbone = load_backbone(BACKBONE, checkpoint)
    knn = evaluate_knn(Config(CONFIG), backbone, progress=False)
    linear = evaluate_linear(Config(CONFIG), backbone, progress=False)
    assert [row['subnet'] for row in card['subnets']] == list(map(str, backbone.space))
    for subnet, row in zip(backbone.space, card['subnets']):
        assert row['scores'] == dict(knn=knn[str(subnet)]['accuracy'], linear=linear[str(subnet)])
        assert (row['params'], row['flops']) == backbone.cost(subnet) and row['flops'] == 2 * row['macs']
        weights = sum(tensor.nbytes for tensor in backbone.extract(subnet)[1].values())
        for cost in row['costs'].values():
            assert cost['kind'] == 'measured' and cost['calls'] >= 2
            assert 0 < cost['median_ms'] <= cost['p90_ms'] and cost['peak_memory'] > weights
    assert card['subnets'][0]['aliases'] == ['small']


@pytest.mark.parametrize('family', ['vit', 'swin', 'resnet'])
def test_file_size_is_that_of_the_file_without_its_metadata(family, supernet_file, tmp_path):
    (entry,) = extract_subnets(supernet_file(family), None, tmp_path, verify=False)[-1:]
    path = tmp_path / entry['file']
    with safe_open(path, 'pt') as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    # Names of the tensors come in another order there, which moves a few digits of the offsets.
    assert abs(path.stat().st_size - len(json.dumps(metadata)) - file_bytes(state)) < 64


@pytest.fixture
def scored(monkeypatch):
    """Takes the place of the k-NN, and keeps what was scored."""
    subnets = []

    def score(cfg, backbone, part, progress, data):
        subnets.extend(part)
        return {str(subnet): 0.5 for subnet in part}

    monkeypatch.setattr(scorecard, 'SCORERS', {'knn': score})
    return subnets


def test_interrupted_it_goes_on(checkpoint, tmp_path, monkeypatch, scored):
    timed = []
    measure = measurement.Measurement.time_once

    def stop_at_the_third(self, subnet):
        if len(timed) == 3:
            raise KeyboardInterrupt
        timed.append(subnet)
        return measure(self, subnet)

    monkeypatch.setattr(measurement.Measurement, 'time_once', stop_at_the_third)
    arguments = (Config(CONFIG), checkpoint, tmp_path, SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        make_scorecard(*arguments, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == [NAME], 'what was found is there, and no scorecard yet'
    monkeypatch.setattr(measurement.Measurement, 'time_once', lambda *args: timed.append(args[1]) or measure(*args))
    make_scorecard(*arguments, progress=False)
    assert len(scored) == len(set(scored)) == 6 and len(timed) == len(set(timed)) == 6, 'nothing is done twice'
    assert NAME not in [path.name for path in tmp_path.iterdir()]


def stopped(checkpoint, folder, monkeypatch, where, config=CONFIG):
    """Leave an unfinished scorecard that stopped in a method of the measurement; its content."""

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(measurement.Measurement, where, stop)
        with pytest.raises(KeyboardInterrupt):
            make_scorecard(Config(config), checkpoint, folder, SETTINGS, progress=False)
    return (folder / NAME).read_bytes()


@pytest.mark.usefixtures('scored')
def test_an_unfinished_one_of_other_data_is_not_gone_on_with(checkpoint, tmp_path, monkeypatch):
    before = stopped(checkpoint, tmp_path, monkeypatch, '_measure_memory')
    other = Config(CONFIG)
    other.knn.query.dataset.split = 'train'
    with pytest.raises(ValueError, match='scored_on was'):
        make_scorecard(other, checkpoint, tmp_path, SETTINGS, progress=False)
    with pytest.raises(ValueError, match=r"conditions was \['torch-cpu-b1', 'torch-cpu-b2'\], is \['torch-cpu-b1'\]"):
        make_scorecard(Config(CONFIG), checkpoint, tmp_path, MeasureSettings(rounds=1), progress=False)
    assert (tmp_path / NAME).read_bytes() == before


def test_scores_are_kept_where_only_the_measurement_changes(checkpoint, tmp_path, monkeypatch, scored):
    stopped(checkpoint, tmp_path, monkeypatch, 'run')
    card = make_scorecard(Config(CONFIG), checkpoint, tmp_path, MeasureSettings(rounds=1), progress=False)
    assert card['conditions'] == ['torch-cpu-b1']
    assert len(scored) == 6, 'nothing was scored again'


@pytest.mark.usefixtures('scored')
def test_files_that_changed_under_the_same_name_are_noticed(checkpoint, tmp_path, monkeypatch):
    folder = tmp_path / 'images' / 'one'
    folder.mkdir(parents=True)
    for number in range(3):
        cv2.imwrite(str(folder / f'{number}.png'), np.full((8, 8, 3), number, np.uint8))
    dataset = dict(type='CustomDataset', data_root=str(folder.parent), pipeline=[dict(type='LoadImageFromFile')])
    config = CONFIG | dict(knn={name: dict(**LOADER, dataset=dataset) for name in ('bank', 'query')})
    stopped(checkpoint, tmp_path / 'out', monkeypatch, 'run', config)
    cv2.imwrite(str(folder / '1.png'), np.full((8, 8, 3), 99, np.uint8))
    with pytest.raises(ValueError, match=r'images of knn.bank was .3 images, \w+., is .3 images, '):
        make_scorecard(Config(config), checkpoint, tmp_path / 'out', SETTINGS, progress=False)


@pytest.mark.usefixtures('scored')
def test_a_batch_that_no_memory_holds_stops_before_anything_is_scored(checkpoint, tmp_path):
    settings = MeasureSettings(batches=(1, 10**10))
    with pytest.raises(ValueError, match=r'batch 10000000000 needs about \d+.\d GB with subnet 32x3, and the memory'):
        make_scorecard(Config(CONFIG), checkpoint, tmp_path / 'new', settings, progress=False)
    assert not (tmp_path / 'new').exists()


def test_an_out_dir_that_is_a_file_stops_before_anything_is_scored(checkpoint, tmp_path, scored):
    (tmp_path / 'out').write_text('mine')
    for out in ('out', 'out/below'):
        with pytest.raises(NotADirectoryError, match=r'a folder is needed to write to, and .*out is a file'):
            make_scorecard(Config(CONFIG), checkpoint, tmp_path / out, SETTINGS, progress=False)
    assert not scored and (tmp_path / 'out').read_text() == 'mine'


@pytest.mark.parametrize(
    ('change', 'protocols', 'message'),
    [
        (dict(knn=None), ['knn'], "no entry 'knn"),
        (dict(model=None), ['knn'], "no 'model.backbone'"),
        ({}, ['svm'], 'protocols must be some of knn, linear'),
        ({}, [], 'protocols must be'),
        ({}, ['knn', 'knn'], 'each once'),
    ],
)
def test_mistakes_come_to_light_before_anything_is_written(checkpoint, tmp_path, change, protocols, message):
    with pytest.raises(ValueError, match=message):
        make_scorecard(Config(CONFIG | change), checkpoint, tmp_path / 'new', SETTINGS, protocols, progress=False)
    assert not (tmp_path / 'new').exists()


def test_onnxruntime_needs_an_exporter(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(MeasureSettings, 'check', lambda self: None)
    with pytest.raises(ValueError, match='needs write_onnx'):
        make_scorecard(Config(CONFIG), checkpoint, tmp_path, MeasureSettings(runtimes=('onnxruntime',)))


def test_one_network_is_no_supernet(checkpoint, tmp_path):
    extract_subnets(checkpoint, ['small'], tmp_path, verify=False)
    extracted = Config.fromfile(tmp_path / 'poa_16x2.py').model.backbone
    cfg = Config(CONFIG | dict(model=dict(backbone=extracted)))
    with pytest.raises(ValueError, match='is of one network'):
        make_scorecard(cfg, tmp_path / 'poa_16x2.safetensors', tmp_path / 'new', SETTINGS)


def test_another_checkpoint_is_refused(supernet_file, tmp_path):
    with pytest.raises(CheckpointError):
        make_scorecard(Config(CONFIG), supernet_file('vit'), tmp_path / 'new', SETTINGS)
    assert not (tmp_path / 'new').exists()


def test_patch_sizes_have_scores_and_costs_of_their_own(tmp_path):
    from mmengine.registry import MODELS

    backbone_cfg = BACKBONE | dict(widths=[16, 32], depths=[2, 3], patch_sizes=[2, 4, 8])
    config = Config(CONFIG | dict(model=CONFIG['model'] | dict(backbone=backbone_cfg)))
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    backbone = MODELS.build(backbone_cfg)
    for param in backbone.parameters():
        torch.nn.init.normal_(param, std=0.2)
    state = {f'teacher.backbone.{key}': value for key, value in backbone.state_dict().items()}
    torch.save({'state_dict': state, 'poa': describe_supernet(config.model.to_dict())}, tmp_path / 'supernet.pth')
    card = make_scorecard(
        config, tmp_path / 'supernet.pth', tmp_path / 'out', MeasureSettings(rounds=1), progress=False
    )
    rows = {row['subnet']: row for row in read_scorecard(tmp_path / 'out' / 'scorecard.json')['subnets']}
    assert list(rows) == list(map(str, backbone.space)) and list(rows)[-1] == '32x3'
    knn = evaluate_knn(config, load_backbone(backbone_cfg, tmp_path / 'supernet.pth'), progress=False)
    assert {name: row['scores']['knn'] for name, row in rows.items()} == {n: s['accuracy'] for n, s in knn.items()}
    assert rows['32x3p2']['macs'] > 3 * rows['32x3']['macs'] > 3 * rows['32x3p8']['macs']
    assert rows['32x3p2']['file_bytes'] != rows['32x3']['file_bytes']
    assert choose(card, dict(params=rows['16x2p8']['params'])).ranked
    assert choose(card, {}).largest['subnet'] == '32x3'
