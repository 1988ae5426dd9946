import importlib.util

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

from poa_mm.evaluation.runtimes import _peak_of_tensors, check_runtime, make_runtime


@pytest.fixture
def make(supernets, randomise, tmp_path):
    init_default_scope('mmpretrain')

    def make(family):
        backbone = randomise(MODELS.build(supernets[family]))
        backbone.eval()
        return backbone, make_runtime('torch', 'cpu', backbone, folder=tmp_path, write_onnx=None, threads=1)

    return make


@pytest.mark.parametrize('family', ['vit', 'swin', 'resnet'])
def test_torch_runs_each_subnet_in_its_turn(make, family):
    backbone, runtime = make(family)
    images = torch.randn(2, 3, 64, 64)
    for subnet in (backbone.space.smallest, backbone.space.largest, backbone.space.smallest):
        with runtime.open(subnet) as load:
            outputs = load(images)()
            with torch.no_grad():
                expected = backbone.extract_features(images, subnet).cls
            found = outputs[-1] if outputs[-1].ndim == 2 else outputs[-1].mean(dim=(2, 3))
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        assert not any(param.numel() for param in runtime._networks[subnet].parameters()), 'the weights are gone'


def test_peak_is_of_what_is_there_at_once():
    def run():
        first = torch.ones(1000)
        second = first + 1
        del first
        third = second + 1
        return (third * second).sum()

    assert 3 * 4000 <= _peak_of_tensors(run) <= 3 * 4000 + 200


@pytest.mark.parametrize('family', ['vit', 'swin', 'resnet'])
def test_peak_memory_is_weights_and_tensors(make, family):
    backbone, runtime = make(family)
    subnet = backbone.space.largest
    # Of small batches, the largest tensor may be a copy of the weights that a convolution makes.
    one, two = (runtime.peak_memory(subnet, torch.randn(batch, 3, 64, 64)) for batch in (16, 32))
    weights = sum(tensor.nbytes for tensor in backbone.extract(subnet)[1].values())
    assert weights < one < two
    assert 1.8 < (two - weights) / (one - weights) < 2.05
    assert runtime.peak_memory(backbone.space.smallest, torch.randn(16, 3, 64, 64)) < one


def test_what_is_not_there_is_named(monkeypatch):
    with pytest.raises(ValueError, match="runtime 'tensorrt' is not one of torch, onnxruntime"):
        check_runtime('tensorrt', 'cpu')
    with pytest.raises(ValueError, match="device 'tpu' is not one of cpu, cuda"):
        check_runtime('torch', 'tpu')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(ValueError, match="device 'cuda' is not there"):
        check_runtime('torch', 'cuda')
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name == 'onnxscript' else find(name))
    with pytest.raises(ValueError, match=r"needs .*onnxscript: pip install 'poa_mm\[export\]'"):
        check_runtime('onnxruntime', 'cpu')
