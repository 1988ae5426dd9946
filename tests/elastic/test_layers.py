from fractions import Fraction

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from poa_mm.elastic import (
    ElasticConv2d,
    ElasticGroupNorm,
    ElasticLayer,
    ElasticLayerNorm,
    ElasticLayerScale,
    ElasticLinear,
    leading,
    sliced_state_dict,
)

RATIOS = [Fraction(1, 4), Fraction(1, 2), Fraction(3, 4), Fraction(1)]
LINEARS = {
    'plain': dict(out_features=12),
    'without bias': dict(out_features=12, bias=False),
    'qkv': dict(out_features=24, stacked=3),
    'qkv without bias': dict(out_features=24, bias=False, stacked=3),
    'head': dict(out_features=5, elastic_out=False),
}


@pytest.fixture(params=LINEARS)
def linear(request):
    """One elastic linear layer of 8 inputs for every use of it."""
    return ElasticLinear(8, **LINEARS[request.param])


def slice_by_hand(linear, tensor, ratio):
    """The part of a weight ``(out, in)`` or bias ``(out,)`` that is in use, with plain indexing."""
    out, inputs = linear.out_features // linear.stacked, int(8 * ratio)
    kept = int(out * ratio) if linear.elastic_out else out
    rows = [matrix * out + row for matrix in range(linear.stacked) for row in range(kept)]
    return tensor[rows][:, :inputs] if tensor.ndim == 2 else tensor[rows]


@pytest.mark.parametrize('ratio', RATIOS)
def test_linear_equals_the_scaled_slice(linear, ratio):
    x = torch.randn(2, 3, int(8 * ratio))
    weight = slice_by_hand(linear, linear.weight, ratio) / float(ratio)
    bias = None if linear.bias is None else slice_by_hand(linear, linear.bias, ratio)
    assert_close(linear(x), F.linear(x, weight, bias))


@pytest.mark.parametrize('ratio', RATIOS)
def test_sliced_state_is_what_forward_computes(linear, ratio):
    inputs = int(8 * ratio)
    state = sliced_state_dict(linear, ratio)
    plain = nn.Linear(inputs, len(state['weight']), bias=linear.bias is not None)
    plain.load_state_dict(state)
    x = torch.randn(4, inputs)
    assert_close(linear(x), plain(x))


def test_query_key_and_value_are_cut_by_themselves():
    """Rows of the query answer 1, of the key 2, of the value 3: at half the width all three are still there."""
    qkv = ElasticLinear(4, 12, bias=False, stacked=3)
    with torch.no_grad():
        qkv.weight.copy_(torch.tensor([1.0, 2.0, 3.0]).repeat_interleave(4).unsqueeze(1).expand(12, 4))
    out = qkv(torch.ones(1, 2))
    assert_close(out, 4 * torch.tensor([[1.0, 1.0, 2.0, 2.0, 3.0, 3.0]]))


@pytest.mark.parametrize('inputs', [128, 256, 384])
def test_alpha_keeps_the_scale(inputs):
    """Where inputs agree in sign, fewer of them times alpha sum to what all of them do (POA, Sec. 3.2)."""
    linear = ElasticLinear(512, 256, bias=False)
    nn.init.uniform_(linear.weight, 0, 1)
    x = torch.rand(16, 512)
    full, part = linear(x), linear(x[:, :inputs])
    assert_close(part.mean(), full.mean(), rtol=0.02, atol=0)
    constant = ElasticLinear(512, 256)
    nn.init.constant_(constant.weight, 0.125)  # sums of it are exact, in whatever order a processor adds
    nn.init.constant_(constant.bias, 0.75)
    assert_close(constant(torch.ones(1, inputs))[0, 0], constant(torch.ones(1, 512))[0, 0])


def test_full_width_runs_the_plain_op(linear, monkeypatch):
    """No slice, no copy, no multiplication: the very tensors go into ``F.linear``."""
    seen = []
    plain = F.linear
    monkeypatch.setattr(ElasticLinear, 'sliced', lambda *args: pytest.fail('sliced at full width'))
    monkeypatch.setattr(F, 'linear', lambda *args: seen.append(args) or plain(*args))
    x = torch.randn(4, 8)
    out = linear(x)
    (args,) = seen
    assert args[0] is x and args[1] is linear.weight and args[2] is linear.bias
    assert torch.equal(out, plain(x, linear.weight, linear.bias))


@pytest.mark.parametrize('ratio', RATIOS)
def test_gradient_reaches_exactly_the_slice(linear, ratio):
    linear(torch.rand(4, int(8 * ratio)) + 1).sum().backward()
    for param in linear.parameters():
        in_use = torch.zeros(param.shape, dtype=torch.bool)
        positions = torch.arange(param.numel()).view(param.shape)
        in_use.view(-1)[slice_by_hand(linear, positions, ratio).flatten()] = True
        assert torch.equal(param.grad != 0, in_use)


@pytest.mark.parametrize('ratio', RATIOS)
def test_layer_norm(ratio):
    norm = ElasticLayerNorm(8, eps=1e-3)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    width = int(8 * ratio)
    plain = nn.LayerNorm(width, eps=1e-3)
    plain.load_state_dict(sliced_state_dict(norm, ratio))
    assert torch.equal(plain.weight, norm.weight[:width]) and torch.equal(plain.bias, norm.bias[:width])
    x = 0.1 * torch.randn(2, 3, width)
    assert_close(norm(x), plain(x))


def test_layer_norm_at_full_width_runs_the_plain_op(monkeypatch):
    norm = ElasticLayerNorm(8)
    monkeypatch.setattr('poa_mm.elastic.layers.leading', lambda *args: pytest.fail('sliced at full width'))
    x = torch.randn(4, 8)
    assert torch.equal(norm(x), F.layer_norm(x, (8,), norm.weight, norm.bias, 1e-6))


@pytest.mark.parametrize('ratio', RATIOS)
def test_layer_scale(ratio):
    scale = ElasticLayerScale(8, init_value=0.5)
    assert torch.equal(scale.weight, torch.full((8,), 0.5))
    nn.init.normal_(scale.weight)
    width = int(8 * ratio)
    x = torch.randn(2, 3, width)
    assert_close(scale(x), x * scale.weight[:width])
    assert torch.equal(sliced_state_dict(scale, ratio)['weight'], scale.weight[:width])


@pytest.mark.parametrize('layer', [ElasticLayerNorm(8), ElasticLayerScale(8)], ids=lambda layer: type(layer).__name__)
def test_gradient_of_vectors_reaches_exactly_the_slice(layer):
    layer(torch.randn(5, 6)).pow(2).sum().backward()
    for param in layer.parameters():
        assert torch.equal(param.grad != 0, torch.arange(8) < 6)


CONVS = {
    'both': {},
    'inputs': dict(elastic_out=False),
    'outputs': dict(elastic_in=False),
    'neither': dict(elastic_in=False, elastic_out=False),
    'strided': dict(stride=2, padding=1),
}


@pytest.fixture(params=CONVS)
def conv(request):
    return ElasticConv2d(8, 16, 3, **CONVS[request.param])


@pytest.mark.parametrize('ratio', RATIOS)
def test_conv_equals_the_scaled_slice(conv, ratio):
    inputs = int(8 * ratio) if conv.elastic_in else 8
    outputs = int(16 * ratio) if conv.elastic_out else 16
    weight = conv.weight[:outputs, :inputs] * 8 / inputs
    x = torch.randn(2, inputs, 7, 5)
    assert_close(conv(x, ratio), F.conv2d(x, weight, None, conv.stride, conv.padding))
    plain = nn.Conv2d(inputs, outputs, 3, conv.stride, conv.padding, bias=False)
    plain.load_state_dict(sliced_state_dict(conv, ratio))
    assert_close(conv(x, ratio), plain(x), rtol=0, atol=0)
    conv(x.abs(), ratio).sum().backward()
    in_use = torch.zeros_like(conv.weight, dtype=torch.bool)
    in_use[:outputs, :inputs] = True
    assert torch.equal(conv.weight.grad != 0, in_use)


def test_conv_at_full_width_runs_the_plain_op(conv, monkeypatch):
    seen = []
    plain = F.conv2d
    monkeypatch.setattr(ElasticConv2d, 'sliced', lambda *args: pytest.fail('sliced at full width'))
    monkeypatch.setattr(F, 'conv2d', lambda *args: seen.append(args) or plain(*args))
    x = torch.randn(2, 8, 5, 5)
    conv(x), conv(x, Fraction(1))
    assert all(args[0] is x and args[1] is conv.weight for args in seen) and len(seen) == 2


@pytest.mark.parametrize('ratio', RATIOS)
def test_group_norm_keeps_its_groups(ratio):
    norm = ElasticGroupNorm(2, 8)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    width = int(8 * ratio)
    plain = nn.GroupNorm(2, width)
    plain.load_state_dict(sliced_state_dict(norm, ratio))
    assert torch.equal(plain.weight, norm.weight[:width]) and torch.equal(plain.bias, norm.bias[:width])
    x = torch.randn(3, width, 4, 5)
    assert_close(norm(x), plain(x), rtol=0, atol=0)
    norm(x).pow(2).sum().backward()
    for param in norm.parameters():
        assert torch.equal(param.grad != 0, torch.arange(8) < width)


def test_leading_is_a_view():
    tensor = torch.arange(12).view(3, 4)
    part = leading(tensor, 2)
    assert part.tolist() == [[0, 1], [4, 5], [8, 9]]
    assert part.data_ptr() == tensor.data_ptr()


def test_sliced_state_dict_of_a_network():
    network = nn.Sequential(ElasticLayerNorm(8), nn.Sequential(ElasticLinear(8, 16), nn.GELU()), ElasticLinear(16, 8))
    state = sliced_state_dict(network, Fraction(1, 2))
    plain = nn.Sequential(nn.LayerNorm(4, eps=1e-6), nn.Sequential(nn.Linear(4, 8), nn.GELU()), nn.Linear(8, 4))
    plain.load_state_dict(state)
    x = torch.randn(3, 4)
    assert_close(plain(x), network(x))


@pytest.mark.parametrize('ratio', [Fraction(1, 2), Fraction(1)])
def test_sliced_state_dict_shares_nothing_with_the_module(ratio):
    network = nn.Sequential(ElasticLayerNorm(8), ElasticLinear(8, 16), ElasticLayerScale(16))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for value in sliced_state_dict(network, ratio).values():
        assert not value.requires_grad
        value.fill_(7)
    assert_close(network.state_dict(), before)


class WithParameter(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = ElasticLinear(8, 8)
        self.token = nn.Parameter(torch.zeros(8))


class WithBuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = ElasticLinear(8, 8)
        self.register_buffer('average', torch.zeros(8))


@pytest.mark.parametrize(
    'module, left',
    [
        (WithParameter(), 'token'),
        (WithBuffer(), 'average'),
        (nn.Sequential(ElasticLinear(8, 8), nn.Linear(8, 8)), '1.bias'),
    ],
    ids=['parameter', 'buffer', 'plain layer'],
)
def test_nothing_is_dropped_unseen(module, left):
    with pytest.raises(AssertionError, match=f'without a slicing rule.*{left}'):
        sliced_state_dict(module, Fraction(1, 2))


def test_the_rest_is_kept_whole_where_asked_for():
    network = nn.Sequential(ElasticConv2d(8, 8, 1), nn.GroupNorm(2, 8))
    nn.init.normal_(network[1].weight)
    state = sliced_state_dict(network, Fraction(1, 2), keep_rest=True)
    assert {name: len(value) for name, value in state.items()} == {'0.weight': 4, '1.weight': 8, '1.bias': 8}
    assert torch.equal(state['1.weight'], network[1].weight) and not state['1.weight'].requires_grad
    state['1.weight'].fill_(7)
    assert not (network[1].weight == 7).any()


def test_a_new_elastic_layer_has_to_say_its_rule():
    with pytest.raises(NotImplementedError):
        ElasticLayer().sliced_state(Fraction(1, 2))
