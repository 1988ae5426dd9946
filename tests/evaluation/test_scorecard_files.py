import csv
import html
import io
import json
import re
import shutil
import subprocess
from urllib.parse import urlencode

import pytest
from scorecards import make_card

from poa_mm.elastic import SubnetSpace
from poa_mm.evaluation.scorecard_files import (
    ScorecardError,
    as_csv,
    as_html,
    as_markdown,
    describe,
    read_scorecard,
    write_scorecard,
)
from poa_mm.evaluation.selection import choose, value_of

CONDITIONS = ('torch-cpu-b1', 'torch-cpu-b8')
PREDICTED = ['64x4', '80x5']
CARD = make_card(conditions=CONDITIONS, protocols=('knn', 'linear'), predicted=PREDICTED)


def test_files_are_written_and_read(tmp_path):
    paths = write_scorecard(CARD, tmp_path / 'new')
    names = ['scorecard.json', 'scorecard.csv', 'scorecard.md', 'scorecard.html']
    assert [path.name for path in paths] == names
    assert sorted(path.name for path in (tmp_path / 'new').iterdir()) == sorted(names), 'and nothing else is left'
    assert read_scorecard(paths[0]) == json.loads(json.dumps(CARD))


def test_csv_has_every_subnet_in_plain_units():
    rows = list(csv.DictReader(io.StringIO(as_csv(CARD))))
    assert [row['subnet'] for row in rows] == [row['subnet'] for row in CARD['subnets']]
    for row, entry in zip(rows, CARD['subnets']):
        assert int(row['params']) == entry['params'] and int(row['flops']) == 2 * int(row['macs'])
        assert float(row['score_linear']) == entry['scores']['linear']
        for condition in CONDITIONS:
            assert row[f'{condition}_kind'] == ('predicted' if entry['subnet'] in PREDICTED else 'measured')
            assert float(row[f'{condition}_median_ms']) == entry['costs'][condition]['median_ms']


def test_markdown_marks_what_is_predicted():
    text = as_markdown(CARD)
    lines = {line.split('|')[1].split(',')[0].strip(): line for line in text.splitlines() if line.startswith('|')}
    for entry in CARD['subnets']:
        assert ('~' in lines[entry['subnet']]) == (entry['subnet'] in PREDICTED)
    assert 'GMACs' in text and 'FLOPs, in the JSON and the CSV, are twice as many' in text
    assert len({line.count('|') for line in lines.values()}) == 1


def test_description_tells_how_good_predictions_are():
    said = '\n'.join(describe(CARD))
    assert '14 subnets measured, 2 predicted' in said
    assert (
        "3 held-out subnets predicted with an error of 1.2 % in the median and 5.0 % at most, Kendall's tau 0.987"
        in said
    )
    assert 'all 16 subnets measured' in '\n'.join(describe(make_card()))


def test_times_of_a_busy_machine_are_said_to_be():
    card = make_card()
    assert 'busy' not in '\n'.join(describe(card))
    for row in card['subnets']:
        cost = row['costs']['torch-cpu-b1']
        cost['p90_ms'] = 2 * cost['median_ms']
    assert 'the 90th percentile is 2.0 times the median' in '\n'.join(describe(card))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda card: card.update(format=2), 'found format 2'),
        (lambda card: card.pop('conditions'), 'not complete'),
        (lambda card: card.update(subnets=[]), 'not complete'),
        (lambda card: card['subnets'][3].pop('params'), "not complete: KeyError\\('params'"),
        (lambda card: card['subnets'][3]['scores'].update(knn=None), 'None of 48x6 is not a number'),
        (lambda card: card['subnets'][3]['scores'].update(knn=float('nan')), 'nan of 48x6 is not a number'),
        (lambda card: card['subnets'][3]['costs']['torch-cpu-b1'].update(median_ms='9'), "'9' of 48x6 is not a number"),
        (lambda card: card['subnets'][3]['costs'].pop('torch-cpu-b8'), 'torch-cpu-b8'),
        (lambda card: card['subnets'][3]['costs']['torch-cpu-b1'].update(kind='guessed'), 'guessed'),
        (lambda card: card.update(checkpoint_sha256=None), 'checkpoint_sha256 is None'),
    ],
)
def test_what_is_no_scorecard_is_refused(tmp_path, change, message):
    card = json.loads(json.dumps(CARD))
    change(card)
    path = tmp_path / 'scorecard.json'
    path.write_text(json.dumps(card))
    with pytest.raises(ScorecardError, match=message):
        read_scorecard(path)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ScorecardError, match='No such file'):
        read_scorecard(tmp_path / 'none.json')
    for text in ('', '[]', '{"a": 1}', '\x00\xff'):
        (tmp_path / 'other').write_text(text)
        with pytest.raises(ScorecardError):
            read_scorecard(tmp_path / 'other')
    with pytest.raises(ScorecardError):
        read_scorecard(tmp_path)


def test_page_needs_nothing_else():
    text = as_html(CARD)
    assert not re.findall(r'(?:src|href)\s*=|@import|url\(', text)
    assert set(re.findall(r'https?://[^\s\'"]+', text)) == {'http://www.w3.org/2000/svg'}, 'a name, not an address'
    for mark in ('/* style */', '/* script */', '/* data */', '<!-- about -->'):
        assert mark not in text


def test_no_name_ends_the_data():
    card = make_card(checkpoint='</script><b>.pth')
    data = re.search(r'<script id="data"[^>]*>(.*?)</script>', as_html(card), re.DOTALL)[1]
    assert json.loads(data)['checkpoint'] == '</script><b>.pth'


# --- in a browser --------------------------------------------------------------------------

BROWSER = shutil.which('chromium') or shutil.which('google-chrome')
OPTIONS = (
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    '--window-size=1280,1400',
    '--virtual-time-budget=3000',
)


@pytest.fixture
def browse(tmp_path):
    """Opens the page of a card, does what ``then`` says, and gives the document that has come of it."""
    if BROWSER is None:
        pytest.skip('no chromium or google-chrome to open the page in')

    def browse(card, then='', **address):
        page = tmp_path / 'scorecard.html'
        page.write_text(as_html(card).replace('</body>', f'<script>{then}</script></body>'), encoding='utf-8')
        url = f'{page.as_uri()}#{urlencode(address)}'
        command = [BROWSER, *OPTIONS, f'--user-data-dir={tmp_path / "profile"}', '--dump-dom', url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return browse


def chosen(document):
    return re.search(r'id="choice"[^>]*data-subnet="([^"]*)"', document)[1]


def rows(document):
    body = document[document.index('<tbody') : document.index('</tbody>')]
    found = re.findall(r'<tr class="([^"]*)" data-subnet="([^"]*)"', body)
    return {name: kinds.split() for kinds, name in found}


def test_page_chooses_as_python_does(browse):
    on, by = 'torch-cpu-b8', 'linear'
    limits = dict(latency=1.4, params=500_000)
    document = browse(CARD, x='latency', on=on, by=by, **{'max-latency': 1.4, 'max-params': 0.5})
    choice = choose(CARD, limits, by, on)
    best = choice.ranked[0]['subnet']
    assert 1 < len(choice.ranked) < 16, 'some fit and some do not'
    assert chosen(document) == best
    assert f'export_subnet.py supernet.pth --subnet {best} --to' in document
    table = rows(document)
    assert set(table) == {row['subnet'] for row in CARD['subnets']}
    assert {name for name, kind in table.items() if 'out' in kind} == {row['subnet'] for row, _ in choice.misses}
    assert [name for name, kind in table.items() if 'best' in kind] == [best]
    dots = re.findall(r'<circle class="(dot[^"]*)"', document)
    assert len(dots) == 16 and sum('predicted' in dot for dot in dots) == len(PREDICTED)
    assert sum('out' in dot.split() for dot in dots) == len(choice.misses)
    assert 'class="limit"' in document


def test_page_marks_the_pareto_front(browse):
    document = browse(CARD, x='params')
    body = document[document.index('<tbody') : document.index('</tbody>')]
    marked = {
        re.search('data-subnet="([^"]*)"', row)[1] for row in body.split('<tr')[1:] if 'class="front-mark"' in row
    }
    points = [(value_of(row, 'params', CONDITIONS[0]), row['scores']['knn'], row['subnet']) for row in CARD['subnets']]
    front = {
        name
        for size, score, name in points
        if not any((s <= size and q > score) or (s < size and q >= score) for s, q, _ in points)
    }
    assert marked == front and 1 < len(front) < 16


def test_page_says_that_nothing_fits_and_by_how_much(browse):
    document = browse(CARD, **{'max-params': 0.01})
    assert chosen(document) == ''
    text = html.unescape(document)
    assert 'Nothing fits' in text and 'Nearest: 48x3: parameters 0.131 M, 0.121 M too much' in text


def test_page_shows_patch_sizes_by_shape(browse):
    card = make_card(SubnetSpace([48, 96], [3, 6], patches=[4, 8, 16], native=8))
    assert card['space'] in as_markdown(card) and 'patch sizes 4, 8, 16 (8 is native)' in card['space']
    document = browse(card, mark='48x6p16')
    assert chosen(document) == '48x6p16' and len(rows(document)) == 12
    assert len(re.findall('<circle class="dot', document)) == 4
    shapes = re.findall('<path class="dot[^>]* d="([^"]*)"', document) + re.findall(
        '<path d="([^"]*)" class="dot', document
    )
    assert sum(shape.count('L') == 0 for shape in shapes) == sum(shape.count('L') == 1 for shape in shapes) == 4
    legend = ['native patch size', 'patch size 4', 'patch size 16']
    assert re.findall('</svg>([^<]*)</li>', document) == legend and not re.findall('</svg>[^<]*</li>', browse(CARD))


def test_page_of_many_subnets(browse):
    card = make_card(SubnetSpace([64, 96, 128], [[3], range(4, 9), range(6, 37), [3]]))
    document = browse(card, x='memory', mark='96x3-6-20-3')
    assert chosen(document) == '96x3-6-20-3' and len(rows(document)) == 465


def test_page_of_one_subnet(browse):
    assert chosen(browse(make_card(SubnetSpace([64], [3])), x='macs')) == '64x3'


HANDS = """
const head = document.getElementById('sort-params').firstChild;
head.click(); head.click();
const slider = document.getElementById('slide-params');
slider.value = 200;
slider.dispatchEvent(new Event('input'));
const dot = document.querySelectorAll('.dot')[5];
const box = dot.getBoundingClientRect();
const at = { clientX: box.x + box.width / 2, clientY: box.y + box.height / 2, bubbles: true };
document.getElementById('chart').dispatchEvent(new PointerEvent('pointermove', at));
"""


def test_page_in_the_hand(browse):
    document = browse(CARD, HANDS)
    names = list(rows(document))
    params = {row['subnet']: row['params'] for row in CARD['subnets']}
    assert names == sorted(names, key=params.get, reverse=True), 'a second click turns the order'
    assert 'id="sort-params" aria-sort="descending"' in document
    low, high = min(params.values()), max(params.values())
    limit = float(f'{(low + high) / 2 / 1e6:.3g}') * 1e6
    assert chosen(document) == choose(CARD, dict(params=limit)).ranked[0]['subnet'], 'the slider is in the middle'
    tip = re.search(r'<div id="tip"[^>]*>(.*?)</div>', document)[1]
    assert tip.startswith('<b>64x4</b>') and '<dd>predicted</dd>' in tip, 'the sixth subnet is under the pointer'
    document = browse(CARD, f'{HANDS}document.getElementById("chart").dispatchEvent(new PointerEvent("click", at));')
    assert chosen(document) == '64x4' and 'Marked by you' in document


def test_page_without_known_memory(browse):
    card = json.loads(json.dumps(CARD))
    for row in card['subnets']:
        for cost in row['costs'].values():
            cost['peak_memory'] = None
    document = browse(card, x='memory')
    assert 'not measured under this condition' in document and chosen(document)
    assert chosen(browse(card, **{'max-memory': 10})) == '', 'what is not known does not fit'
