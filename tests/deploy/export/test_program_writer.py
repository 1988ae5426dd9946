import pytest
import torch

from poa_mm.checkpoint import load_teacher
from poa_mm.compat import is_at_least
from poa_mm.deploy.export import ExportError
from poa_mm.deploy.export.program_writer import ProgramWriter
from poa_mm.evaluation.runtimes import OnnxRuntime

needs_exporter = pytest.mark.skipif(not is_at_least('torch', '2.6'), reason='the exporter of this torch is too old')


@needs_exporter
@pytest.mark.slow
@pytest.mark.parametrize('family', ['vit', 'swin', 'resnet'])
def test_onnxruntime_runs_what_an_export_holds(family, supernet_file, tmp_path):
    pytest.importorskip('onnxruntime')
    backbone, _ = load_teacher(supernet_file(family))
    runtime = OnnxRuntime(backbone, 'cpu', tmp_path, ProgramWriter(), threads=1)
    subnet = backbone.space.smallest
    for _ in range(2):  # written once, loaded twice
        with runtime.open(subnet) as load:
            for batch in (1, 3):
                images = torch.randn(batch, 3, 64, 64)
                with torch.no_grad():
                    expected = backbone.extract_features(images, subnet).cls
                features = torch.from_numpy(load(images)()[0].numpy())
                torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)
    weights = sum(tensor.nbytes for tensor in backbone.extract(subnet)[1].values())
    assert runtime.peak_memory(subnet, images) > weights


@needs_exporter
def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setattr('poa_mm.deploy.export.run.find_spec', lambda name: None)
    with pytest.raises(ExportError, match=r"pip install 'poa_mm\[export\]'"):
        ProgramWriter()


@pytest.mark.skipif(is_at_least('torch', '2.6'), reason='the exporter of this torch is there')
def test_an_old_exporter_is_named(monkeypatch):
    with pytest.raises(ExportError, match='needs torch'):
        ProgramWriter()
