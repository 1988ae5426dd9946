"""The notebook of the documentation runs from the first cell to the last."""

import os
from pathlib import Path

import pytest

nbformat = pytest.importorskip('nbformat')
nbclient = pytest.importorskip('nbclient')
for module in ('ipykernel', 'onnxruntime', 'timm'):
    pytest.importorskip(module)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def notebook():
    return nbformat.read(ROOT / 'docs' / 'tour.ipynb', as_version=4)


def test_is_valid_and_holds_no_outputs(notebook):
    nbformat.validate(notebook)
    assert not [cell for cell in notebook.cells if cell.cell_type == 'code' and cell.outputs]


@pytest.mark.slow
def test_runs(notebook, tmp_path, monkeypatch):
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    monkeypatch.setenv('PYTHONPATH', path)
    nbclient.NotebookClient(notebook, timeout=1200, resources={'metadata': {'path': str(tmp_path)}}).execute()
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob('*/*')}
    assert {'exported/manifest.json', 'scorecard/scorecard.html', 'digits/train', 'work_dirs/vits_folder'} <= files
    text = str(notebook.cells[-1].outputs)
    assert '(5, 64)' in text or '(5, 128)' in text
