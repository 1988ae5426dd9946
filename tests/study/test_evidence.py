import json
from dataclasses import asdict, replace

import pytest

from poa_mm.study import Entry, read_evidence, summarise, write_evidence
from poa_mm.study.evidence import Summary, add_evidence

ENTRY = Entry('poa', 'digits', 0, '48x3', 0.5, 0.6, None, None, 10, 2.5, 'a machine', 'abc')


def test_what_was_written_is_read(tmp_path):
    path = tmp_path / 'new' / 'evidence.json'
    entries = [ENTRY, replace(ENTRY, row='pixels', subnet=None)]
    write_evidence(path, entries)
    assert sorted(read_evidence(path), key=lambda entry: entry.row) == sorted(entries, key=lambda entry: entry.row)
    assert set(json.loads(path.read_text())[0]) == {
        *('row', 'data', 'seed', 'subnet', 'knn', 'linear', 'labels_1', 'labels_10'),
        *('iterations', 'seconds', 'machine', 'commit'),
    }
    assert [file.name for file in path.parent.iterdir()] == ['evidence.json']


def test_no_file_is_no_evidence(tmp_path):
    assert read_evidence(tmp_path / 'nothing.json') == []


def test_a_new_result_takes_the_place_of_the_old_one_only(tmp_path):
    path = tmp_path / 'evidence.json'
    add_evidence(path, [ENTRY, replace(ENTRY, seed=1)])
    add_evidence(path, [replace(ENTRY, knn=0.7)])
    assert [(entry.seed, entry.knn) for entry in read_evidence(path)] == [(0, 0.7), (1, 0.5)]


@pytest.mark.parametrize(
    'content, complaint',
    [
        ('{', 'not json'),
        ('{"row": 1}', 'holds a dict'),
        ('[{"row": "poa"}]', 'has the fields'),
        ('[3]', "fields \\['3'\\]"),
        (json.dumps([{**asdict(ENTRY), 'knn': 87.3}]), 'knn 87.3'),
        (json.dumps([{**asdict(ENTRY), 'linear': '0.5'}]), "linear '0.5'"),
        (json.dumps([{**asdict(ENTRY), 'labels_1': float('nan')}]), 'labels_1 nan'),
        (json.dumps([asdict(ENTRY)] * 2), 'two entries'),
    ],
)
def test_what_is_no_evidence_is_refused(tmp_path, content, complaint):
    path = tmp_path / 'evidence.json'
    path.write_text(content)
    with pytest.raises(ValueError, match=complaint):
        read_evidence(path)


def test_seeds_are_summarised_and_gaps_are_not_zeros():
    entries = [replace(ENTRY, seed=seed, knn=knn) for seed, knn in enumerate([0.5, 0.6, 0.7, None])]
    found = summarise(entries, 'poa', 'digits', '48x3', 'knn')
    assert found == pytest.approx((0.6, 0.1, 3))
    assert found.percent() == '60.0 ± 10.0'
    assert summarise(entries, 'poa', 'digits', '48x3', 'labels_1') is None
    assert summarise(entries, 'alone', 'digits', '48x3', 'knn') is None
    assert Summary.of([0.5]).percent() == '50.0'  # one seed has no spread
