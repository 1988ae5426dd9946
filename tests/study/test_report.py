from dataclasses import replace

import pytest
from mmengine.config import Config

from poa_mm.study import Entry, read_evidence, write_evidence, write_report
from poa_mm.study.report import EVIDENCE, PAGE, WARM_PAGE, fill, parts_of, tables
from poa_mm.study.rows import DATA, ROWS
from poa_mm.study.smoke import DATA as SMOKE

ENTRY = Entry('poa', 'digits', 0, '48x3', 0.9, 0.95, 0.5, 0.7, 10, 600, 'a machine', 'abc')
SIZES = ['48x3', '80x5', '96x6']
FLOPS = {'48x3': 10, '64x4': 20, '80x5': 30, '96x6': 50}


@pytest.fixture
def entries():
    """Three seeds of POA and of three networks alone, one seed of pixels."""
    found = [
        replace(ENTRY, row='pixels', subnet=None, knn=0.98, labels_1=None, labels_10=None, iterations=0, seconds=0)
    ]
    for seed in range(3):
        for number, size in enumerate(FLOPS):
            found.append(replace(ENTRY, seed=seed, subnet=size, knn=0.9 + 0.01 * number + 0.01 * seed))
        for size in SIZES:
            seconds = 60 + 6 * FLOPS[size]
            found.append(replace(ENTRY, row='alone', seed=seed, subnet=size, knn=0.88 + 0.01 * seed, seconds=seconds))
    return found


def test_tables_have_means_and_spreads(entries):
    found = tables(entries, 'digits', SIZES, FLOPS)
    assert found['knn'].splitlines() == [
        '| k-NN (%) | 48x3 | 80x5 | 96x6 |',
        '| --- | --- | --- | --- |',
        '| `pixels`: raw pixels | 98.0 | 98.0 | 98.0 |',
        '| `poa`: POA, one run | 91.0 ± 1.0 | 93.0 ± 1.0 | 94.0 ± 1.0 |',
        '| `alone`: pre-trained alone, a run each | 89.0 ± 1.0 | 89.0 ± 1.0 | 89.0 ± 1.0 |',
    ]
    assert '| 64x4 | 92.0 ± 1.0 |  |' in found['subnets']
    assert '| `poa` - `alone` | +2.0 ± 1.4 | +4.0 ± 1.4 | +5.0 ± 1.4 |' in found['gains']
    assert '| `poa` | 0, 1, 2 | 10 | abc |' in found['seeds']
    assert '| `slices` | none yet |  |  |' in found['seeds']


def test_costs_are_those_of_runs_and_what_was_not_measured_lies_on_a_line(entries):
    assert tables(entries, 'digits', SIZES, FLOPS)['cost'].splitlines()[2:] == [
        '| one run of POA, all sizes | 10.0 |',
        '| 48x3 alone | 2.0 |',
        '| 80x5 alone | 4.0 |',
        '| 96x6 alone | 6.0 |',
        '| 3 sizes alone, sum | 12.0 |',
        '| all 4 sizes alone, estimated | 15.0 |',  # 64x4 takes 3
        '| runs alone that cost as much as one of POA, mean size | 2.7 |',
    ]


def test_nothing_yet_gives_empty_tables():
    found = tables([], 'digits', SIZES, FLOPS)
    assert all(row in found['seeds'] + found['warm_seeds'] for row in ROWS)
    assert found['knn'].count('\n') == 1


def test_only_what_is_between_marks_changes():
    page = 'a\n<!-- begin x.y -->\nold\n<!-- end x.y -->\nb <!-- begin x.y --> c\n'
    assert fill(page, {'x.y': 'new'}) == 'a\n<!-- begin x.y -->\nnew\n<!-- end x.y -->\nb <!-- begin x.y --> c\n'
    assert fill(fill(page, {'x.y': 'new'}), {'x.y': 'old'}) == page
    with pytest.raises(ValueError, match=r"mark 'x.y'.*there are z"):
        fill(page, {'z': ''})


def test_a_report_is_rebuilt_from_the_json_alone(entries, tmp_path):
    evidence, page = tmp_path / 'evidence.json', tmp_path / 'page.md'
    write_evidence(evidence, entries)
    page.write_text('<!-- begin digits.knn -->\n<!-- end digits.knn -->\n')
    written = write_report(evidence, page, SMOKE)
    assert {path.name for path in written} == {
        *('digits_params.png', 'digits_heat_map.png', 'digits_labels.png', 'page.md'),
    }
    assert '93.0 ± 1.0' in page.read_text()
    before = {path: path.read_bytes() for path in written}
    assert page not in write_report(evidence, page, SMOKE)
    assert {path: path.read_bytes() for path in written} == before


@pytest.mark.parametrize('page, mark', [(PAGE, 'fashion_mnist.knn'), (WARM_PAGE, 'fashion_mnist.warm_knn')])
def test_the_numbers_of_the_page_are_those_of_the_json(page, mark):
    text = page.read_text(encoding='utf-8')
    assert f'begin {mark}' in text
    assert fill(text, parts_of(read_evidence(EVIDENCE))) == text


def test_warm_starts_have_tables_and_a_figure_of_their_own(entries, tmp_path):
    found = [replace(entry, row='warm_20', iterations=2, seconds=120) for entry in entries if entry.row == 'poa']
    found = [replace(entry, knn=entry.knn - 0.005) for entry in found]
    slices = [replace(entry, row='slices', knn=0.5, seconds=999) for entry in found]
    everything = [*entries, *found, *slices]
    tables_of = tables(everything, 'digits', SIZES, FLOPS)
    assert tables_of['warm_knn'].splitlines()[2:] == [
        '| `poa`: POA from scratch, all iterations | 10.0 | 91.0 ± 1.0 | 93.0 ± 1.0 | 94.0 ± 1.0 |',
        '| `slices`: slices of the source, as they are | 0.0 | 50.0 ± 0.0 | 50.0 ± 0.0 | 50.0 ± 0.0 |',
        '| `warm_20`: warm start, 20 % of the iterations, not ordered, EMA teacher | 2.0 | 90.5 ± 1.0 | 92.5 ± 1.0 '
        '| 93.5 ± 1.0 |',
    ]
    assert '| `warm_20` - `poa` | -0.5 ± 1.4 | -0.5 ± 1.4 | -0.5 ± 1.4 |' in tables_of['warm_gap']
    assert 'warm_20' not in tables_of['knn'] + tables_of['gains'] + tables_of['seeds']
    write_evidence(tmp_path / 'evidence.json', everything)
    assert tmp_path / 'evidence' / 'digits_warm.png' in write_report(
        tmp_path / 'evidence.json', tmp_path / 'none.md', SMOKE
    )
    assert parts_of(entries, SMOKE)['digits.figure_warm'] == ''


def test_the_evidence_is_of_the_study():
    entries = read_evidence(EVIDENCE)
    assert {entry.row for entry in entries} <= set(ROWS)
    assert {entry.data for entry in entries} <= set(DATA)
    lengths = {name: Config.fromfile(path).train_cfg.max_iters for name, path in DATA.items()}
    for entry in entries:
        if ROWS[entry.row].start in ('supernet', 'alone', 'slices', 'warm'):
            assert entry.iterations == round(ROWS[entry.row].share * lengths[entry.data])
