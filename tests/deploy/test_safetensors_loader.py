import pytest
import torch
from mmengine.runner import CheckpointLoader, load_checkpoint
from mmengine.runner.checkpoint import load_from_http, load_from_local
from safetensors.torch import save_file

from poa_mm.checkpoint import CheckpointError
from poa_mm.deploy.safetensors_loader import load_from_safetensors


@pytest.mark.parametrize(
    ('path', 'loader'),
    [
        ('a.safetensors', load_from_safetensors),
        ('/some where/a.b.safetensors', load_from_safetensors),
        ('http://host/a.safetensors', load_from_http),
        ('a.safetensors.pth', load_from_local),
        ('safetensors/a.pth', load_from_local),
    ],
)
def test_which_loader_reads_what(path, loader):
    assert CheckpointLoader._get_checkpoint_loader(path) is loader


def test_mmengine_loads_safetensors(tmp_path):
    source, target = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    save_file(source.state_dict(), tmp_path / 'a.safetensors', metadata={'subnet': '384x12'})
    checkpoint = load_checkpoint(target, str(tmp_path / 'a.safetensors'), map_location='cpu', strict=True)
    assert torch.equal(target.weight, source.weight)
    assert checkpoint['meta'] == {'subnet': '384x12'}


def test_broken_or_missing(tmp_path):
    path = tmp_path / 'a.safetensors'
    with pytest.raises(CheckpointError, match='found nothing'):
        CheckpointLoader.load_checkpoint(str(path))
    path.write_bytes(b'no safetensors')
    with pytest.raises(CheckpointError, match='expected a safetensors file'):
        CheckpointLoader.load_checkpoint(str(path))
