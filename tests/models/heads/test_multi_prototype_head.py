import pytest
import torch
from mmengine.registry import MODELS
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from poa_mm.models import MultiPrototypeHead
from poa_mm.models.heads.multi_prototype_head import Projector, Prototypes


@pytest.fixture
def head(randomise):
    """Two small heads of 64 inputs."""
    return randomise(MultiPrototypeHead(64, num_prototypes=(8, 12), hidden_channels=24, bottleneck_channels=16))


def test_one_set_of_logits_for_each_head(head):
    logits = head(torch.randn(5, 64))
    assert [out.shape for out in logits] == [(5, 8), (5, 12)]
    assert head.num_prototypes == (8, 12)


@pytest.mark.parametrize('width', [32, 48, 64])
def test_logits_by_hand(head, width):
    """MLP with alpha on its first layer, unit length, then the weight-normalised layer of torch."""
    x = torch.randn(5, width)
    for index, logits in enumerate(head(x)):
        layers, prototypes = head.projectors[index].layers, head.prototypes[index]
        hidden = F.gelu(x @ layers[0].weight[:, :width].T * 64 / width + layers[0].bias)
        embedding = F.normalize(layers[4](F.gelu(layers[2](hidden))), dim=-1)
        plain = nn.utils.weight_norm(nn.Linear(16, len(prototypes.weight), bias=False))
        with torch.no_grad():
            plain.weight_g.copy_(prototypes.gain)
            plain.weight_v.copy_(prototypes.weight)
        assert_close(logits, plain(embedding))


def test_heads_share_nothing(head):
    head(torch.randn(5, 64))[0].sum().backward()
    for name, param in head.named_parameters():
        assert (param.grad is not None) == ('.0.' in name[:14]), name


def test_rows_do_not_depend_on_each_other(head):
    x = torch.randn(6, 64)
    for whole, first, second in zip(head(x), head(x[:2]), head(x[2:])):
        assert_close(whole, torch.cat([first, second]))


def test_no_rows(head):
    assert [out.shape for out in head(torch.randn(0, 64))] == [(0, 8), (0, 12)]


def test_gradient_reaches_the_inputs_in_use_only(head):
    sum(out.pow(2).sum() for out in head(torch.randn(5, 32))).backward()
    for projector in head.projectors:
        grad = projector.layers[0].weight.grad
        assert (grad[:, :32] != 0).all() and (grad[:, 32:] == 0).all()


def test_scale_of_the_prototypes_does_not_matter_but_the_gain_does():
    prototypes = Prototypes(16, 8)
    assert (prototypes.gain == 1).all()
    x = F.normalize(torch.randn(5, 16), dim=-1)
    before = prototypes(x)
    assert before.abs().max() <= 1  # cosines
    with torch.no_grad():
        prototypes.weight *= 100
    assert_close(prototypes(x), before)
    with torch.no_grad():
        prototypes.gain[3] = 2
    assert_close(prototypes(x)[:, 3], 2 * before[:, 3])


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_embedding_has_unit_length_in_float32(dtype):
    projector = Projector(64, 24, 16, num_layers=3)
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = projector(torch.randn(5, 32))
    assert out.dtype == torch.float32
    assert_close(out.norm(dim=-1), torch.ones(5))


@pytest.mark.parametrize('num_layers', [2, 3, 5])
def test_number_of_layers(num_layers):
    layers = Projector(64, 24, 16, num_layers).layers
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [
        (64, 24),
        *[(24, 24)] * (num_layers - 2),
        (24, 16),
    ]
    assert [type(layer) for layer in layers[1::2]] == [nn.GELU] * (num_layers - 1)


def test_default_is_that_of_the_paper():
    with torch.device('meta'):
        head = MultiPrototypeHead(1024)
    assert [tuple(prototypes.weight.shape) for prototypes in head.prototypes] == [
        (8192, 256),
        (16384, 256),
        (32768, 256),
        (65536, 256),
    ]
    assert [tuple(layer.weight.shape) for layer in head.projectors[3].layers[::2]] == [
        (2048, 1024),
        (2048, 2048),
        (256, 2048),
    ]


def test_initial_weights():
    head = MultiPrototypeHead(64, num_prototypes=(8,), hidden_channels=128, bottleneck_channels=32)
    head.init_weights()
    for layer in head.projectors[0].layers[::2]:
        assert_close(layer.weight.std(), torch.tensor(0.02), rtol=0.1, atol=0)
        assert not layer.bias.any()
    assert (head.prototypes[0].gain == 1).all()


def test_checkpoint_keys():
    head = MultiPrototypeHead(64, num_prototypes=(8, 12), hidden_channels=24, bottleneck_channels=16)
    assert set(head.state_dict()) == {
        *(f'projectors.{i}.layers.{j}.{name}' for i in (0, 1) for j in (0, 2, 4) for name in ('weight', 'bias')),
        *(f'prototypes.{i}.{name}' for i in (0, 1) for name in ('gain', 'weight')),
    }


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(num_prototypes=()), r'num_prototypes \(\) must name at least one head'),
        (dict(num_prototypes=(8, 1)), r'num_prototypes \(8, 1\)'),
        (dict(num_layers=1), 'num_layers 1 is below 2'),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MultiPrototypeHead(64, **{'hidden_channels': 8, 'bottleneck_channels': 8, 'num_prototypes': (4,), **options})


def test_registered_in_the_root_registry():
    assert MODELS.get('MultiPrototypeHead') is MultiPrototypeHead
