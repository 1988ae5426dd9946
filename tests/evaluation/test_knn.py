import itertools
import json

import cv2
import numpy as np
import pytest
import torch
import torch.multiprocessing
from mmengine.config import Config
from mmengine.dataset import DefaultSampler, default_collate
from mmengine.registry import DATASETS, DefaultScope, init_default_scope
from mmpretrain.models import SelfSupDataPreprocessor
from mmpretrain.structures import DataSample
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from torch.utils.data import DataLoader, Dataset

from poa_mm.elastic import Subnet, SubnetSpace
from poa_mm.evaluation import (
    evaluate_knn,
    extract_features,
    feature_batches,
    knn,
    knn_accuracy,
    print_table,
    save_report,
)
from poa_mm.evaluation.progress import show_progress
from poa_mm.evaluation.report import draw_heat_map
from poa_mm.models import ElasticVisionTransformer

SIZE = 7  # odd: two processes have to pad
SUBNETS = [Subnet(16, 2), Subnet(32, 3)]


@DATASETS.register_module()
class CountedImages(Dataset):
    """Random images of one colour per class, which counts how often each is read."""

    def __init__(self, size=SIZE, num_classes=3, noise=1.0, labelled=True):
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(size) % num_classes
        colours = torch.rand(num_classes, 3, 1, 1, generator=generator)
        self.images = colours[self.labels] + noise * torch.rand(size, 3, 8, 8, generator=generator)
        self.reads = [0] * size
        self.labelled = labelled

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.reads[index] += 1
        sample = DataSample()
        if self.labelled:
            sample.set_gt_label(int(self.labels[index]))
        return {'inputs': self.images[index], 'data_samples': sample}


@pytest.fixture(autouse=True)
def one_thread():
    """Threads cost more than they bring on tensors this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def default_scope():
    init_default_scope('mmpretrain')
    yield
    DefaultScope._instance_dict.clear()


def build_backbone():
    torch.manual_seed(0)
    backbone = ElasticVisionTransformer(
        arch={'embed_dims': 32, 'num_layers': 3, 'num_heads': 4, 'feedforward_channels': 64},
        widths=[16, 24, 32],
        depths=[2, 3],
        aliases={'small': '16x2'},
        img_size=8,
        patch_size=4,
        layer_scale_init_value=1.0,
    )
    for param in backbone.parameters():
        torch.nn.init.normal_(param, std=0.2)
    return backbone


def build_loader(batch_size=2, **dataset):
    dataset = CountedImages(**dataset)
    sampler = DefaultSampler(dataset, shuffle=False, seed=0)
    return DataLoader(dataset, batch_size, sampler=sampler, collate_fn=default_collate)


def random_problem(bank=50, queries=30, channels=8, num_classes=4):
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(bank, channels, generator=generator),
        torch.randint(num_classes, (bank,), generator=generator),
        torch.randn(queries, channels, generator=generator),
        torch.randint(num_classes, (queries,), generator=generator),
    )


def digits():
    features, labels = load_digits(return_X_y=True)
    features = features + np.random.default_rng(0).normal(0, 4, features.shape)  # or the task is too easy
    features, labels = torch.from_numpy(features).float(), torch.from_numpy(labels)
    return features[:1200], labels[:1200], features[1200:], labels[1200:]


# --- the classifier ------------------------------------------------------------------------------


@pytest.mark.parametrize('k', [1, 5, 50])
def test_against_a_loop(k):
    bank, bank_labels, queries, query_labels = random_problem()
    correct = 0
    for query, label in zip(queries, query_labels):
        similarity = [float(torch.cosine_similarity(query, feature, dim=0)) for feature in bank]
        votes = [0.0] * 4
        for index in sorted(range(len(bank)), key=similarity.__getitem__)[-k:]:
            votes[bank_labels[index]] += np.exp(similarity[index] / 0.07)
        correct += int(np.argmax(votes)) == int(label)
    assert knn_accuracy(bank, bank_labels, queries, query_labels, ks=[k]) == {k: correct / len(queries)}


@pytest.mark.parametrize('temperature', [0.07, 1.0])
def test_against_sklearn(temperature):
    bank, bank_labels, queries, query_labels = digits()
    found = knn_accuracy(bank, bank_labels, queries, query_labels, ks=(10, 20), temperature=temperature)
    for k in (10, 20):
        reference = KNeighborsClassifier(
            k, metric='cosine', algorithm='brute', weights=lambda distance: np.exp((1 - distance) / temperature)
        )
        expected = reference.fit(bank, bank_labels).score(queries, query_labels)
        assert 0.8 < expected < 0.99
        # One query more or less: sklearn ranks in double precision.
        assert found[k] == pytest.approx(expected, abs=1.5 / len(queries))


def test_separable_clusters_score_one_and_shuffled_labels_chance():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 4
    features = torch.eye(8)[labels] + 0.05 * torch.randn(400, 8, generator=generator)
    split = (features[:200], labels[:200], features[200:], labels[200:])
    assert knn_accuracy(*split) == {10: 1.0, 20: 1.0}
    shuffled = labels[:200][torch.randperm(200, generator=generator)]
    accuracy = knn_accuracy(split[0], shuffled, *split[2:], ks=(20,))[20]
    assert 0.1 < accuracy < 0.4


def test_chunks_and_scale_do_not_matter():
    bank, bank_labels, queries, query_labels = random_problem()
    expected = knn_accuracy(bank, bank_labels, queries, query_labels)
    for chunk_size in (1, 7, 30, 1000):
        assert knn_accuracy(bank, bank_labels, queries, query_labels, chunk_size=chunk_size) == expected
    assert knn_accuracy(3 * bank, bank_labels, 0.1 * queries, query_labels) == expected
    assert knn_accuracy(bank.double(), bank_labels.int(), queries, query_labels) == expected


def test_small_temperature_does_not_overflow():
    """At T -> 0 only the nearest neighbour counts."""
    problem = random_problem()
    assert knn_accuracy(*problem, ks=(20,), temperature=1e-4)[20] == knn_accuracy(*problem, ks=(1,))[1]


def test_query_class_that_the_bank_lacks_is_wrong():
    bank, bank_labels, queries, query_labels = random_problem()
    assert knn_accuracy(bank, bank_labels, queries, query_labels + 100) == {10: 0.0, 20: 0.0}


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'ks': (51,)}, 'between 1 and the 50 images'),
        ({'ks': (0,)}, 'between 1 and'),
        ({'ks': ()}, 'between 1 and'),
        ({'temperature': 0}, 'temperature 0'),
        ({'chunk_size': 0}, 'chunk_size 0'),
        ({'bank_labels': torch.zeros(49)}, r'bank features \(50, 8\) and labels \(49,\)'),
        ({'query_labels': torch.zeros(30, 1)}, r'query features \(30, 8\) and labels \(30, 1\)'),
        ({'queries': torch.zeros(0, 8), 'query_labels': torch.zeros(0)}, 'N > 0'),
        ({'queries': torch.zeros(30, 9)}, '8 channels, query features 9'),
        ({'bank_labels': torch.full((50,), -1)}, 'not be negative; got -1'),
    ],
)
def test_errors(change, message):
    names = ('bank', 'bank_labels', 'queries', 'query_labels')
    with pytest.raises(ValueError, match=message):
        knn_accuracy(**{**dict(zip(names, random_problem())), **change})


# --- features ------------------------------------------------------------------------------------


def test_every_subnet_of_each_image_read_once():
    backbone, loader, done = build_backbone(), build_loader(), []
    backbone.train()
    preprocessor = SelfSupDataPreprocessor(mean=[0.5] * 3, std=[0.2] * 3)
    features, labels = extract_features(backbone, loader, preprocessor, ['small', '32x3', '16x2'], done.append)
    assert loader.dataset.reads == [1] * SIZE
    assert done == [2, 2, 2, 1]
    assert backbone.training, 'the mode is as it was'
    torch.testing.assert_close(labels, loader.dataset.labels)
    assert list(features) == SUBNETS
    backbone.eval()
    for subnet, feature in features.items():
        expected = backbone.extract_features((loader.dataset.images - 0.5) / 0.2, subnet).cls
        assert feature.shape == (SIZE, subnet.width) and not feature.requires_grad
        torch.testing.assert_close(feature, expected)


def _extract(rank, folder, config):
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', f'file://{folder}/init', rank=rank, world_size=2)
    backbone, preprocessor = build_backbone(), SelfSupDataPreprocessor()
    loader = build_loader()
    whole = extract_features(backbone, loader, preprocessor, SUBNETS)
    reads = list(loader.dataset.reads)
    shard = extract_features(backbone, loader, preprocessor, SUBNETS, shard=True)
    loader.sampler.shuffle = True
    with pytest.raises(ValueError, match='shuffle=False'):
        next(feature_batches(backbone, loader, preprocessor, SUBNETS))
    init_default_scope('mmpretrain')
    scores = evaluate_knn(Config(config), backbone, progress=False)
    torch.save({'whole': whole, 'shard': shard, 'reads': reads, 'scores': scores}, folder / f'{rank}.pt')


def test_two_processes_do_as_one(tmp_path, default_scope):
    config = knn_config(bank={'size': 41, 'noise': 2.0}, query={'size': 21, 'noise': 2.0}, ks=(3, 5))
    # Forked, because importing the libraries anew takes far longer than the test.
    torch.multiprocessing.start_processes(_extract, (tmp_path, config), nprocs=2, start_method='fork')
    # weights_only=False: the keys are subnets, written by this test.
    ranks = [torch.load(tmp_path / f'{rank}.pt', weights_only=False) for rank in range(2)]
    expected, labels = extract_features(build_backbone(), build_loader(), SelfSupDataPreprocessor(), SUBNETS)
    scores = evaluate_knn(Config(config), build_backbone(), progress=False)
    for number, rank in enumerate(ranks):
        torch.testing.assert_close(rank['whole'], (expected, labels))
        part = {subnet: feature[number::2] for subnet, feature in expected.items()}
        torch.testing.assert_close(rank['shard'], (part, labels[number::2]))
        assert rank['scores'] == scores
    # Each image once; the first one pads.
    assert [sum(reads) for reads in zip(*(rank['reads'] for rank in ranks))] == [2] + [1] * (SIZE - 1)


def test_diverged_weights_are_named():
    backbone = build_backbone()
    torch.nn.init.constant_(backbone.ln1.weight, float('nan'))
    with pytest.raises(ValueError, match='subnet 16x2 are not finite'):
        extract_features(backbone, build_loader(), SelfSupDataPreprocessor(), SUBNETS)
    assert backbone.training


@pytest.mark.parametrize(
    ('dataset', 'message'), [({'labelled': False}, 'exactly one gt_label'), ({'size': 0}, 'data set is empty')]
)
def test_unusable_data(dataset, message):
    with pytest.raises(ValueError, match=message):
        extract_features(build_backbone(), build_loader(**dataset), SelfSupDataPreprocessor(), SUBNETS)


# --- the evaluation ------------------------------------------------------------------------------


def knn_config(bank=None, query=None, **knn):
    loaders = {
        name: {'batch_size': 8, 'num_workers': 0, 'dataset': {'type': 'CountedImages', **(dataset or {})}}
        for name, dataset in (('bank', bank), ('query', query))
    }
    preprocessor = {'mean': [0.5] * 3, 'std': [0.2] * 3}
    return {'model': {'data_preprocessor': preprocessor}, 'knn': {**loaders, **knn}}


def test_scores_are_those_of_the_features(default_scope):
    config = knn_config({'size': 41, 'noise': 2.0}, {'size': 20, 'noise': 2.0}, ks=(3, 5), temperature=0.1)
    backbone = build_backbone()
    scores = evaluate_knn(Config(config), backbone, progress=False)
    assert list(scores) == [str(subnet) for subnet in backbone.space]
    assert scores['24x2'] == evaluate_knn(Config(config), backbone, ['24x2'], progress=False)['24x2']

    preprocessor = SelfSupDataPreprocessor(mean=[0.5] * 3, std=[0.2] * 3)
    loaders = [build_loader(size=size, noise=2.0) for size in (41, 20)]
    parts = [extract_features(backbone, loader, preprocessor, backbone.space) for loader in loaders]
    (bank, bank_labels), (queries, query_labels) = parts
    for subnet in backbone.space:
        expected = knn_accuracy(bank[subnet], bank_labels, queries[subnet], query_labels, (3, 5), 0.1)
        score = scores[str(subnet)]
        assert (score['3'], score['5']) == pytest.approx(tuple(expected.values()))
        assert score['accuracy'] == score[str(score['k'])] == max(score['3'], score['5'])
    assert len({score['accuracy'] for score in scores.values()}) > 1, 'subnets differ'


@pytest.mark.parametrize('number', [1, 4, 100])
def test_several_passes_score_the_same(number, default_scope):
    config = knn_config({'size': 41, 'noise': 2.0}, {'size': 20, 'noise': 2.0}, ks=(3, 5))
    backbone = build_backbone()
    expected = evaluate_knn(Config(config), backbone, progress=False)
    config['knn']['subnets_per_pass'] = number
    scores = evaluate_knn(Config(config), backbone, progress=False)
    assert scores == expected and list(scores) == list(expected)


def test_separable_images_score_one(default_scope):
    config = knn_config({'size': 60, 'noise': 0.01}, {'size': 30, 'noise': 0.01}, ks=(5,))
    scores = evaluate_knn(Config(config), build_backbone(), ['small', '32x3'], progress=False)
    assert scores == {name: {'accuracy': 1.0, 'k': 5, '5': 1.0} for name in ('16x2', '32x3')}


@pytest.mark.parametrize(
    ('config', 'subnets', 'message'),
    [
        ({'model': {}}, None, "no entry 'knn"),
        ({'model': {}, 'knn': {'bank': {}}}, None, r"keys \['bank'\]"),
        (knn_config(neighbours=3), None, 'neighbours'),
        (knn_config(subnets_per_pass=0), None, 'subnets_per_pass 0 is not'),
        (knn_config(subnets_per_pass=1.5), None, 'subnets_per_pass 1.5 is not'),
        (knn_config(), None, 'between 1 and the 7 images'),
        (knn_config(), ['17x2'], '17x2 is not in the space'),
        (knn_config(), [], 'no subnet'),
    ],
)
def test_evaluation_errors(config, subnets, message, default_scope):
    with pytest.raises(ValueError, match=message):
        evaluate_knn(Config(config), build_backbone(), subnets, progress=False)


# --- the report ----------------------------------------------------------------------------------


def some_results(widths=None, depths=None):
    return {
        f'{width}x{depth}': {'accuracy': value, 'k': 20, '10': value - 0.01, '20': value}
        for width, depth in itertools.product(widths or range(384, 1025, 64), depths or range(12, 25))
        for value in [0.5 + width / 5000 + depth / 500]
    }


@pytest.mark.parametrize('results', [some_results(), some_results([384, 1024], [12])])
def test_report(results, tmp_path):
    json_path, png_path = save_report(results, tmp_path / 'new' / 'folder')
    assert json.loads(json_path.read_text()) == results
    assert sorted(path.name for path in json_path.parent.iterdir()) == ['knn.json', 'knn.png']
    image = cv2.imread(str(png_path))
    height, width = image.shape[:2]
    assert 300 < height < 2000 and 500 < width < 2500
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 2 * len(results), 'not blank'


def test_report_of_a_part_and_of_several_stages(tmp_path):
    results = some_results()
    save_report({name: results[name] for name in ('384x12', '1024x24')}, tmp_path)
    score = {'accuracy': 0.7, 'k': 10, '10': 0.7}
    save_report({'64x3-4-6-3': score, '128x3-4-23-3': score}, tmp_path)
    with pytest.raises(ValueError, match='no results'):
        save_report({}, tmp_path)


def test_report_of_two_stages_has_a_panel_for_each_width(tmp_path):
    depths = [f'3-{second}-{third}-3' for second in range(4, 9) for third in range(6, 37)]
    results = some_results([64, 96, 128], [12])
    results = {
        f'{width}x{depth}': dict(results[f'{width}x12'], accuracy=0.5) for width in (64, 96, 128) for depth in depths
    }
    figure = draw_heat_map(results)
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ['width 64', 'width 96', 'width 128']
    assert {(axes.get_ylabel(), axes.get_xlabel()) for axes in panels} == {('depth of stage 2', 'depth of stage 3')}
    assert [len(axes.texts) for axes in panels] == [155] * 3
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ['4', '5', '6', '7', '8']
    assert max(figure.get_size_inches()) < 25


def test_report_of_patch_sizes_has_a_panel_for_each():
    space = SubnetSpace([384, 448, 512], [12, 13], patches=[8, 16, 32], native=16)
    results = {str(subnet): dict(accuracy=0.5 + index / 100, k=10, **{'10': 0.5}) for index, subnet in enumerate(space)}
    figure = draw_heat_map(results)
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ['patch size 8', 'patch size 32', 'native patch size']
    assert {(axes.get_ylabel(), axes.get_xlabel()) for axes in panels} == {('width', 'depth')}
    for axes, patch in zip(panels, (8, 32, None)):
        shown = [text.get_text() for text in axes.texts]
        assert shown == [f'{100 * results[str(s)]["accuracy"]:.1f}' for s in space if s.patch == patch]
    alone = draw_heat_map({'384x12p8': results['384x12p8']})
    assert [axes.get_title() for axes in alone.axes if axes.get_title()] == ['patch size 8']


def test_failed_report_leaves_the_old_one(tmp_path, monkeypatch):
    json_path, _ = save_report(some_results([384], [12]), tmp_path)
    before = json_path.read_text()

    def fail(*args):
        raise OSError('disk full')

    monkeypatch.setattr('os.replace', fail)
    with pytest.raises(OSError, match='disk full'):
        save_report(some_results(), tmp_path)
    assert json_path.read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ['knn.json', 'knn.png']


def test_table(capsys):
    print_table(some_results([384], [12, 13]))
    text = capsys.readouterr().out
    assert '384x13' in text and 'k = 20' in text and '60.28' in text


def test_progress_without_a_terminal_is_lines(capsys):
    with show_progress('k-NN', 20) as advance:
        advance(10)
        advance(10)
    assert capsys.readouterr().err == 'k-NN: 20/20 images, left 0:00:00\n'
    with show_progress('k-NN', 20, enabled=False) as advance:
        advance(20)
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('part', ['bank', 'query'])
def test_features_that_are_no_numbers_are_refused(part, bad):
    features = {'bank': torch.randn(30, 4), 'query': torch.randn(5, 4)}
    features[part][[1, 3], 2] = bad
    with pytest.raises(ValueError, match=rf'2 of {len(features[part])} {part} features hold NaN or infinity'):
        knn_accuracy(features['bank'], torch.arange(30) % 3, features['query'], torch.arange(5) % 3)
    features[part][:] = bad
    with pytest.raises(ValueError, match='hold NaN or infinity'):
        knn_accuracy(features['bank'], torch.arange(30) % 3, features['query'], torch.arange(5) % 3)


@pytest.mark.parametrize(('noise', 'warned'), [(1e-4, True), (0.0, True), (0.05, False)])
def test_features_that_are_all_alike_are_said(monkeypatch, noise, warned):
    said = []
    monkeypatch.setattr(knn, 'print_log', lambda text, *args: said.append(text))
    torch.manual_seed(0)
    features = torch.ones(8, 16) + noise * torch.randn(8, 16)
    knn.warn_of_collapse({Subnet(48, 3): features, Subnet(96, 6): torch.randn(8, 16)})
    assert bool(said) is warned
    assert not warned or 'for 48x3: the k-NN score means nothing' in said[0]
