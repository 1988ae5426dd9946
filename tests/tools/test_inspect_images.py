import io
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from image_files import bad_files, encoded, photo
from PIL import Image

from poa_mm.datasets.decoding import decode
from poa_mm.datasets.sources import FolderSource
from poa_mm.datasets.write_shards import write_shards

TOOL = Path(__file__).parents[2] / 'tools' / 'inspect_images.py'


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the tool as a command and gives its exit code, the JSON, the page and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, arguments), '-o', 'report'])
        code = 0
        try:
            runpy.run_path(str(TOOL), run_name='__main__')
        except SystemExit as stop:
            code = stop.code
        _, err = capsys.readouterr()
        if code:
            assert not list(tmp_path.glob('report/*'))
            return code, None, None, err
        folder = tmp_path / 'report'
        return code, json.loads((folder / 'images.json').read_text()), (folder / 'images.html').read_text(), err

    return run


def turned(image):
    exif = Image.Exif()
    exif[274] = 6
    return encoded(image, exif=exif)


@pytest.fixture
def odd(tmp_path):
    """Twenty ordinary photographs and one of every oddity."""
    root = tmp_path / 'images'
    root.mkdir()
    faint = photo(seed=34)
    faint.putalpha(128)
    files = {f'ok{index:02d}.jpg': encoded(photo(seed=index)) for index in range(20)}
    files |= bad_files()
    files |= {
        'grey.png': encoded(photo(seed=30).convert('L'), 'PNG'),
        'cmyk.jpg': encoded(photo(seed=31).convert('CMYK')),
        'palette.png': encoded(photo(seed=32).quantize(16), 'PNG'),
        'bilevel.png': encoded(photo(seed=33).convert('1'), 'PNG'),
        'alpha.webp': encoded(faint, 'WEBP'),
        'turned.JPG': turned(photo(seed=35)),
        'deep.png': encoded(Image.fromarray(np.arange(48 * 40, dtype=np.uint16).reshape(40, 48) * 30), 'PNG'),
        'same.jpg': files['ok03.jpg'],
        'similar.jpg': encoded(photo(seed=4), quality=60),
        'similar <b>.png': encoded(photo(seed=4).resize((96, 80)), 'PNG'),
        'white.png': encoded(Image.new('RGB', (40, 40), 'white'), 'PNG'),
        'black.png': encoded(Image.fromarray(np.random.default_rng(0).integers(0, 9, (40, 40, 3), np.uint8)), 'PNG'),
        'huge.png': encoded(Image.new('L', (700, 300), 77), 'PNG'),
    }
    for name, content in files.items():
        (root / name).write_bytes(content)
    bands = np.random.default_rng(1).integers(0, 4000, (30, 20, 13), np.uint16)
    tifffile.imwrite(root / 'bands.tif', bands, photometric='minisblack', planarconfig='contig')
    (root / 'notes.txt').write_text('')
    return root


def names(report, kind):
    return {Path(entry['name']).name for entry in report['odd'][kind]['images']}


def groups(report, kind):
    return [{Path(name).name for name in group} for group in report['odd'][kind]['images']]


def check_oddities(report):
    assert names(report, 'empty') == {'empty.jpg'}
    assert names(report, 'truncated') | names(report, 'unreadable') == bad_files().keys() - {'empty.jpg', 'bomb.png'}
    assert {'truncated.jpg', 'truncated.png'} <= names(report, 'truncated')
    assert {'garbage.jpg', 'text.png'} <= names(report, 'unreadable')
    assert names(report, 'too large') == {'bomb.png'}
    assert names(report, 'single colour') == {'white.png', 'huge.png'}
    assert names(report, 'near-black') == {'black.png'}
    assert groups(report, 'duplicates') == [{'ok03.jpg', 'same.jpg'}]
    assert groups(report, 'near-duplicates') == [{'ok04.jpg', 'similar.jpg', 'similar <b>.png'}]
    assert report['transparent'] == 1
    assert report['turned_by_exif'] == {'6': 1}
    assert {mode: report['modes'][mode] for mode in ('L', 'CMYK', 'P', '1', 'RGBA', 'bands')} == {
        **dict(L=2, CMYK=1, P=1, RGBA=1, bands=1),
        '1': 1,
    }
    assert (report['channels']['4'], report['channels']['13']) == (2, 1)
    assert (report['bits']['16'], report['bits']['1']) == (2, 1)
    assert report['shorter_side'] == {'1..31': 1, '32..63': 31, '64..95': 1, '256..383': 1}


def test_every_oddity_is_found(run, odd):
    code, report, page, err = run(odd, '--near-duplicates', '--processes', 2)
    assert code == 0
    check_oddities(report)
    assert report['images'] == report['looked_at'] == 43
    assert report['left_out'] == {'.txt': 1}
    assert sum(report['suffixes'].values()) == 43
    assert (report['suffixes']['.webp'], report['suffixes']['.tif']) == (1, 1)
    assert 'similar &lt;b&gt;.png' in page and 'similar <b>' not in page
    assert page.count('<img src="data:image/jpeg;base64,') == 5
    assert 'inspected' in err


def test_mean_and_deviation_are_numpys(run, odd):
    _, report, *_ = run(odd, '--processes', 1)
    source = FolderSource(odd)
    pixels, grey16 = [], None
    for index in range(len(source)):
        name = source.key(index)
        if name == 'deep.png':
            grey16 = np.asarray(Image.open(io.BytesIO(source.read(index)))).astype(np.float64)
        elif name not in bad_files() and name != 'bands.tif':
            pixels.append(decode(source.read(index), 10**8)[..., ::-1].reshape(-1, 3))
    pixels = np.concatenate(pixels).astype(np.float64)
    found = report['pixels']['3 x uint8']
    np.testing.assert_allclose(found['mean'], pixels.mean(axis=0), rtol=0, atol=1e-6)
    np.testing.assert_allclose(found['std'], pixels.std(axis=0), rtol=0, atol=1e-6)
    deep = report['pixels']['1 x uint16']
    np.testing.assert_allclose([*deep['mean'], *deep['std']], [grey16.mean(), grey16.std()], rtol=0, atol=1e-6)
    bands = tifffile.imread(odd / 'bands.tif').reshape(-1, 13).astype(np.float64)
    np.testing.assert_allclose(report['pixels']['13 x uint16']['std'], bands.std(axis=0), rtol=1e-9)
    suggested = report['suggestions']
    assert (suggested['in_channels'], suggested['value_range']) == (3, None)
    assert suggested['mean'] == found['mean']
    assert suggested['others'] == {'1 x uint16': 1, '13 x uint16': 1}


def test_shards_say_the_same(run, odd, tmp_path, monkeypatch):
    monkeypatch.setenv('POA_MM_INDEX', str(tmp_path / 'index'))
    _, folder, *_ = run(odd, '--near-duplicates')
    source = FolderSource(odd)
    write_shards(source, tmp_path / 'shards', per_shard=20)
    _, shards, *_ = run(tmp_path / 'shards', '--near-duplicates')
    for key in folder.keys() - {'odd', 'left_out', 'suffixes'}:
        assert folder[key] == shards[key]
    assert {kind: entry['number'] for kind, entry in folder['odd'].items()} == {
        kind: entry['number'] for kind, entry in shards['odd'].items()
    }


def bands_folder(root, dtype, channels, top):
    rng = np.random.default_rng(0)
    root.mkdir()
    for index in range(16):
        values = (rng.random((40, 36, channels)) * top).astype(dtype)
        np.save(root / f'{index}.npy', values)
    return root


@pytest.mark.parametrize(
    'dtype, channels, top, value_range',
    [
        (np.uint16, 13, 4000, [0.0, 4095.0]),
        (np.uint16, 1, 65000, [0.0, 65535.0]),
        (np.float32, 4, 1.0, None),
        (np.int16, 5, 300, None),
    ],
)
def test_suggestions_for_bands(run, tmp_path, dtype, channels, top, value_range):
    root = bands_folder(tmp_path / 'images', dtype, channels, top)
    code, report, page, _ = run(root)
    assert code == 0
    found = report['suggestions']
    values = np.concatenate([np.load(path).reshape(-1, channels) for path in root.glob('*.npy')]).astype(np.float64)
    low, high = value_range or (values.min(), values.max())
    assert found['value_range'] == pytest.approx([low, high])
    assert found['in_channels'] == channels
    scaled = (values.clip(low, high) - low) * 255 / (high - low)
    np.testing.assert_allclose(found['mean'], scaled.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(found['std'], scaled.std(axis=0), atol=1e-6)
    assert (found['global_crop'], found['local_crop'], found['batch_size']) == (32, 16, 2)
    assert f'in_channels = {channels}' in page


@pytest.mark.parametrize(
    'value', [np.bool_(True), np.uint8(0), np.uint16(0), np.float32(0), np.complex64(0), np.float32('nan')], ids=repr
)
@pytest.mark.parametrize('pages', [1, 3])
def test_thumbnails_of_tiff_files_of_several_pages(run, tmp_path, value, pages):
    (tmp_path / 'images').mkdir()
    for name in ('one', 'two'):  # the same, so that they are shown
        with tifffile.TiffWriter(tmp_path / 'images' / f'{name}.tif') as file:
            for _ in range(pages):
                file.write(np.full((40, 50), value))
    code, report, page, _ = run(tmp_path / 'images')
    usable = not report['odd']['unreadable']['number']
    assert code == 0 and usable == (value.dtype.kind in 'buf' and bool(np.isfinite(value)))
    assert report['odd']['single colour']['number'] == 2 * usable
    assert '<img' in page or not usable


def test_a_sample(run, odd):
    _, report, *_ = run(odd, '--sample', 10)
    assert (report['images'], report['looked_at']) == (43, 10)
    assert run(odd, '--sample', 10)[1] == report


def test_only_garbage(run, tmp_path):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images' / 'a.jpg').write_bytes(b'garbage')
    code, report, page, _ = run(tmp_path / 'images')
    assert (code, report['suggestions']) == (0, {})
    assert 'no image can be used' in page


@pytest.mark.parametrize(
    'arguments, words',
    [(['nowhere'], 'nowhere is no'), (['empty'], 'no images'), (['images', '--sample', '0'], 'sample 0')],
)
def test_mistakes_end_in_one_line(run, odd, tmp_path, arguments, words):
    (tmp_path / 'empty').mkdir()
    code, _, _, err = run(*arguments)
    assert code == 2
    assert words in err.splitlines()[-1]


def test_a_report_that_cannot_be_written_is_not_begun(run, odd, tmp_path, monkeypatch):
    (tmp_path / 'report').write_text('mine')
    monkeypatch.setattr('poa_mm.datasets.inspection.inspect', lambda *args: pytest.fail('looked at images'))
    code, _, _, err = run(odd)
    assert (code, 'report is a file' in err, len(err.splitlines())) == (2, True, 1)
