import json
import time
from dataclasses import replace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from poa_mm.checkpoint import load_teacher
from poa_mm.elastic import Subnet
from poa_mm.evaluation import evaluate_knn
from poa_mm.study import Unit, work
from poa_mm.study.pretraining import alone, study_config
from poa_mm.study.rows import CONFIGS
from poa_mm.study.rows import DATA as FILES
from poa_mm.study.scoring import CutOut, features, load_data, settings
from poa_mm.study.smoke import DATA, OPTIONS, smoke
from poa_mm.study.work import Worker, finished

DIGITS = DATA['digits']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('study')


@pytest.fixture(scope='module')
def worker(folder):
    return Worker(folder, DATA, OPTIONS)


@pytest.fixture(scope='module')
def trained(worker):
    """One run of POA, three iterations, and its entries."""
    return worker.do(Unit('digits', 'poa', 3))


def test_every_subnet_is_scored_and_three_sizes_are_fine_tuned(trained):
    assert [entry.subnet for entry in trained] == ['48x3', '48x6', '96x3', '96x6']
    assert all(0 <= entry.knn <= 1 for entry in trained)
    assert [entry.linear is not None for entry in trained] == [True, False, False, True]
    assert [entry.labels_1 is not None for entry in trained] == [True, False, False, True]
    assert {(entry.row, entry.data, entry.seed, entry.iterations) for entry in trained} == {('poa', 'digits', 3, 3)}
    assert len({entry.seconds for entry in trained}) == 1
    assert trained[0].seconds > 0


def test_knn_is_that_of_eval_knn(trained, worker, folder):
    unit = Unit('digits', 'poa', 3)
    cfg = worker.config(unit)
    backbone = load_teacher(unit.folder(folder) / 'iter_3.pth')[0]
    expected = evaluate_knn(cfg, backbone, progress=False)
    assert {entry.subnet: entry.knn for entry in trained} == {
        subnet: pytest.approx(score['accuracy'], abs=1e-5) for subnet, score in expected.items()
    }


def test_what_is_done_is_not_done_again(trained, worker, monkeypatch):
    monkeypatch.setattr(work, 'pretrain', None)
    monkeypatch.setattr(work, 'frozen_scores', None)
    assert worker.do(Unit('digits', 'poa', 3)) == trained


def test_half_done_work_is_gone_on_with(trained, folder, monkeypatch):
    """Killed after the training and the first scores: neither is repeated, and the price is that of the training."""
    unit = Unit('digits', 'poa', 3)
    (unit.folder(folder) / work.RESULT).unlink()
    (unit.folder(folder) / 'scores_96x6.json').unlink()
    scored = []
    monkeypatch.setattr(work, 'frozen_scores', lambda *args, linear: scored.append(args) or dict(knn=0.25, linear=0.5))
    again = Worker(folder, DATA, OPTIONS).do(unit)
    assert len(scored) == 1
    assert again[:3] == trained[:3]
    assert (again[3].knn, again[3].iterations, again[3].seconds) == (0.25, 3, trained[3].seconds)
    assert finished(unit, folder) == again


def test_an_interrupted_training_is_resumed_at_its_price(worker, folder, monkeypatch):
    unit = Unit('digits', 'no_es2', 0)
    cfg = worker.config(unit)
    cfg.train_cfg.max_iters = 2  # as far as it got
    work.pretrain(cfg)
    checkpoint = unit.folder(folder) / 'iter_2.pth'
    content = torch.load(checkpoint, weights_only=False)
    assert content['processor_seconds'] > 0
    started = time.process_time()
    entries = worker.do(unit)
    assert entries[0].iterations == 3
    assert entries[0].seconds >= round(content['processor_seconds'], 1)
    assert entries[0].seconds <= content['processor_seconds'] + time.process_time() - started
    assert not checkpoint.exists()


def test_slices_are_those_of_the_largest_network_trained_alone(worker, folder):
    sliced = worker.do(Unit('digits', 'slices', 0))
    whole = finished(Unit('digits', 'alone', 0, '96x6'), folder)
    assert [entry.subnet for entry in sliced] == ['48x3', '48x6', '96x3', '96x6']
    assert replace(sliced[-1], row='alone', labels_1=whole[0].labels_1, labels_10=whole[0].labels_10) == whole[0]
    description = load_teacher(Unit('digits', 'alone', 0, '96x6').folder(folder) / 'iter_3.pth')[0]
    assert [str(subnet) for subnet in description.space] == ['96x6']


@pytest.mark.parametrize('row', ['warm_20', 'warm_20_frozen', 'warm_5_ordered', 'slices_ordered'])
def test_warm_starts_begin_with_the_largest_network_trained_alone(worker, folder, row):
    unit, alone_96 = Unit('digits', row, 0), Unit('digits', 'alone', 0, '96x6')
    entries = worker.do(unit)
    source, start = (
        load_teacher(path)[0]
        for path in (alone_96.folder(folder) / 'iter_3.pth', unit.folder(folder) / 'start' / 'start.pth')
    )
    ordered = 'ordered' in row
    qkv = [network.layers[0].attn.qkv.weight for network in (source, start)]
    assert torch.equal(*qkv) != ordered
    images = torch.randn(2, 3, 32, 32)
    # At full size, the same network, in whatever order its channels are.
    features = [network.extract_features(images).cls.sort(dim=1).values for network in (source, start)]
    torch.testing.assert_close(*features, rtol=1e-4, atol=1e-4)
    assert [entry.subnet for entry in entries] == ['48x3', '96x6']
    assert {entry.iterations for entry in entries} == {3 if row == 'slices_ordered' else 1}
    if row == 'slices_ordered':
        return
    weights = torch.load(unit.folder(folder) / 'iter_1.pth', weights_only=False)['state_dict']
    frozen = weights.get('frozen_teacher.backbone.layers.0.attn.qkv.weight')
    assert (frozen is not None) == ('frozen' in row)
    if frozen is not None:
        assert torch.equal(frozen, qkv[0])


def test_a_share_of_a_run_has_all_its_parts(tmp_path):
    fashion = Worker(tmp_path)
    whole, short = (fashion.config(Unit('fashion_mnist', row, 0)) for row in ('poa', 'warm_20_frozen'))
    assert short.train_cfg.max_iters == round(0.2 * whole.train_cfg.max_iters)
    assert short.recipe.ramp_iters == round(0.2 * whole.recipe.ramp_iters)
    assert short.custom_hooks[1].freeze_backbone_iters == short.recipe.heads_iters == 40
    assert short.recipe.lr == 0.5 * whole.recipe.lr
    assert (whole.model.get('frozen_teacher'), short.model.frozen_teacher) == (None, 'source')


@pytest.mark.parametrize('row', ['pixels', 'untrained', 'supervised'])
def test_rows_without_pretraining(row, worker):
    subnet = None if row == 'pixels' else '48x3'
    (entry,) = worker.do(Unit('digits', row, 0, subnet))
    assert (entry.subnet, entry.iterations) == (subnet, 2 if row == 'supervised' else 0)
    assert (entry.labels_1 is not None) == (row == 'untrained')
    assert 0.05 < entry.knn <= 1
    if row == 'pixels':
        assert entry.knn == pytest.approx(0.981, abs=0.001)  # the docstring of vitt_digits.py


@pytest.mark.parametrize('config, subnet', [('vitt_digits.py', Subnet(64, 4)), ('swint_digits.py', Subnet(16, 2))])
def test_a_network_alone_is_the_network_that_the_subnet_is(config, subnet):
    backbone = Config.fromfile(CONFIGS / config).model.backbone
    whole, own = (MODELS.build(dict(settings)) for settings in (backbone, alone(backbone, subnet)))
    assert list(own.space) == [subnet]
    assert own.cost(subnet) == whole.cost(subnet)
    (config, state), (own_config, own_state) = (network.extract(subnet) for network in (whole, own))
    assert config == own_config
    assert {name: value.shape for name, value in state.items()} == {
        name: value.shape for name, value in own_state.items()
    }


@pytest.mark.parametrize('backbone', [dict(type='ElasticResNet'), dict(type='ElasticVisionTransformer', arch='large')])
def test_networks_that_cannot_be_trained_alone_are_refused(backbone):
    with pytest.raises(ValueError, match=backbone['type']):
        alone(backbone, Subnet(64, 4))


def test_rows_change_what_they_say_and_nothing_else(tmp_path):
    base, one_head, no_es2 = (
        study_config(DIGITS, options, 0, tmp_path, None)
        for options in ({}, {'model.head.num_prototypes': 'last'}, {'model.weight_es2': 0})
    )
    assert one_head.model.head.num_prototypes == [128]
    assert no_es2.model.weight_es2 == 0
    one_head.model.head.num_prototypes = base.model.head.num_prototypes
    del no_es2.model['weight_es2']
    assert one_head.pretty_text == base.pretty_text == no_es2.pretty_text


def test_a_cut_out_network_has_the_features_of_the_subnet(worker):
    unit = Unit('digits', 'untrained', 0, '48x3')
    cfg = worker.config(unit, Subnet(48, 3))
    data = load_data(cfg)
    network = CutOut(worker._fresh(cfg, 0), Subnet(48, 3))
    assert features(network, data.test).inputs.shape == (len(data.test.labels), 48)
    assert data.num_classes == 10
    assert len(data.train.labels) == 1433


def test_an_unknown_setting_is_refused():
    with pytest.raises(ValueError, match='labels_5'):
        settings(Config(dict(study=dict(labels_5={}))))


def test_the_machine_and_the_commit_are_named():
    assert work.machine().endswith(('1 thread', 'threads'))
    assert work.commit() == 'unknown' or len(work.commit().rstrip('+')) == 10


@pytest.mark.slow
def test_all_rows_end_to_end(tmp_path):
    started = time.process_time()
    entries = smoke(tmp_path)
    assert time.process_time() - started < 180
    assert len(json.loads((tmp_path / 'evidence.json').read_text())) == len(entries)
    page = (tmp_path / 'evidence.md').read_text()
    assert '96x6' in page
    assert {path.name for path in (tmp_path / 'evidence').iterdir()} == {
        f'digits_{name}.png' for name in ('params', 'heat_map', 'ablation', 'labels', 'warm')
    }


def test_the_configs_of_the_study_are_there():
    assert all(path.is_file() for path in FILES.values())
