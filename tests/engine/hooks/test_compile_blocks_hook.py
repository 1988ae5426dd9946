from types import SimpleNamespace

import pytest
import torch
from mmengine.registry import MODELS
from mmpretrain.structures import DataSample
from torch._dynamo.testing import CompileCounter

from poa_mm.elastic import Subnet
from poa_mm.engine import CompileBlocksHook

needs_compiler = pytest.mark.skipif(torch.__version__ < (2, 5), reason=f'torch {torch.__version__} is too old for it')


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def model(supernets):
    torch.manual_seed(0)
    head = dict(type='MultiPrototypeHead', num_prototypes=[8, 16], hidden_channels=16, bottleneck_channels=8)
    model = MODELS.build(dict(type='POA', backbone=supernets['vit'] | dict(drop_path_rate=0.3), head=head))
    model.init_weights()
    return model.train()


@pytest.fixture
def step(model):
    """Loss and gradients of a step whose elastic student is ``subnet``."""
    views = [torch.randn(4, 3, size, size) for size in (64, 64, 32, 32)]
    samples = [DataSample(mask=mask) for mask in torch.rand(4, 2, 4, 4) < 0.3]

    def run(subnet):
        torch.manual_seed(1)  # stochastic depth
        model.deck = SimpleNamespace(deal=lambda: subnet)
        model.zero_grad()
        loss = model.loss(views, samples)['loss']
        loss.backward()
        grads = {name: param.grad.clone() for name, param in model.named_parameters() if param.grad is not None}
        return {'loss': loss.detach(), **grads}

    return run


def compiled(model, **options):
    CompileBlocksHook(**options).before_train(SimpleNamespace(model=model))


@needs_compiler
@pytest.mark.parametrize('with_cp', [False, True], ids=['plain', 'checkpointed'])
def test_a_handful_of_graphs_serves_all_subnets(model, step, with_cp):
    model.backbone.with_cp = with_cp
    subnets = list(model.backbone.space)
    plain = [step(subnet) for subnet in subnets]
    graphs = CompileCounter()
    compiled(model, backend=graphs)
    for subnet, expected in zip(subnets, plain):
        found = step(subnet)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, msg=f'{subnet} {name}')
    assert 0 < graphs.frame_count <= 4 < len(subnets)


@needs_compiler
@pytest.mark.slow
def test_the_same_graphs_serve_all_patch_sizes(model, step, supernets):
    model.backbone = MODELS.build(dict(supernets['vit'], drop_path_rate=0.3, patch_sizes=[8, 16, 32]))
    model.backbone.init_weights()
    subnets = [Subnet(width, 2, patch) for width in (32, 64) for patch in (8, 16, 32)]
    plain = [step(subnet) for subnet in subnets]
    graphs = CompileCounter()
    compiled(model, backend=graphs)
    for subnet, expected in zip(subnets, plain):
        torch.testing.assert_close(step(subnet), expected)
    assert 0 < graphs.frame_count <= 4 < len(subnets)


@needs_compiler
@pytest.mark.slow
def test_generated_code_computes_the_same(model, step):
    subnets = [model.backbone.space.smallest, model.backbone.space.largest]
    plain = [step(subnet) for subnet in subnets]
    compiled(model)
    for subnet, expected in zip(subnets, plain):
        for name, found in step(subnet).items():
            scale = expected[name].abs().max()
            assert (found - expected[name]).abs().max() <= 1e-5 * scale, f'{subnet} {name}'


@needs_compiler
def test_checkpoints_are_the_same(model):
    names = list(model.state_dict())
    compiled(model, backend='eager')
    assert list(model.state_dict()) == names


@needs_compiler
def test_options_reach_the_compiler(model, step):
    calls = []

    def backend(graph, inputs, **kwargs):
        calls.append(kwargs)
        return graph

    compiled(model, backend=backend, options=dict(level=3), dynamic=False)
    step(model.backbone.space.largest)
    assert calls and all(kwargs == dict(options=dict(level=3)) for kwargs in calls)


@needs_compiler
@pytest.mark.parametrize('family', ['swin', 'resnet'])
def test_other_backbones_are_refused(family, supernets):
    model = SimpleNamespace(backbone=MODELS.build(supernets[family]))
    with pytest.raises(ValueError, match=f'not for {type(model.backbone).__name__}'):
        CompileBlocksHook().before_train(SimpleNamespace(model=model))


def test_too_old_a_torch_is_refused(monkeypatch):
    monkeypatch.setattr(torch, '__version__', torch.torch_version.TorchVersion('2.4.1'))
    with pytest.raises(ValueError, match=r'needs torch 2\.5 or newer, and this is 2\.4\.1'):
        CompileBlocksHook()
