import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from poa_mm.models import SinkhornKnopp
from poa_mm.models.losses import Targets, prototype_logits, prototype_loss
from poa_mm.models.losses.logits import float32_products, in_parts, padded


@pytest.mark.parametrize('rows', [1, 8, 13])
def test_logits_lie_prototype_by_prototype(rows):
    embeddings, prototypes = torch.randn(rows, 4), torch.randn(12, 4)
    logits = prototype_logits(embeddings, prototypes)
    assert_close(logits, embeddings @ prototypes.T)
    assert logits.shape == (rows, 12)
    assert logits.stride() == (1, -(-rows // 8) * 8)


def test_no_rows_have_no_logits():
    assert prototype_logits(torch.zeros(0, 4), torch.zeros(12, 4)).shape == (0, 12)


@pytest.mark.parametrize('rows, total', [(0, 0), (1, 8), (8, 8), (9, 16)])
def test_padding_is_zeros_at_the_end(rows, total):
    values = torch.randn(rows, 3)
    result = padded(values)
    assert result.shape == (total, 3)
    assert torch.equal(result[:rows], values) and not result[rows:].any()


@pytest.mark.parametrize('number, parts', [(128, 64), (96, 32), (12, 4), (7, 1)])
def test_parts_are_consecutive_and_share_memory(number, parts):
    matrix = torch.arange(number * 2.0).view(number, 2)
    result = in_parts(matrix)
    assert result.shape == (parts, number // parts, 2)
    assert torch.equal(result.flatten(0, 1), matrix)
    assert result.data_ptr() == matrix.data_ptr()


# --- precision ---


class TensorFloat32(TorchDispatchMode):
    """Rounds the factors of matrix products as a GPU's tensor cores do: to 10 bits, sums in float32."""

    def __init__(self):
        super().__init__()
        self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        factors = {'mm': (0, 1), 'bmm': (0, 1), 'addmm_': (1, 2)}.get(func.overloadpacket.__name__, ())
        args = [rounded(arg) if place in factors else arg for place, arg in enumerate(args)]
        self.products += bool(factors)
        return func(*args, **(kwargs or {}))


def rounded(values):
    """To the nearest number with 10 bits after the first."""
    bits = values.contiguous().view(torch.int32)
    return (((bits + 2**12) // 2**13) * 2**13).view(torch.float32)


def test_rounding_by_hand():
    assert rounded(torch.tensor([1.0, 1 + 2**-10, 1 + 2**-12, 3 + 2**-8])).tolist() == [1, 1 + 2**-10, 1, 3 + 2**-8]


def problem():
    """Unit vectors, prototypes of length about one and targets, of the sizes of a head."""
    embeddings, prototypes = (functional.normalize(torch.randn(n, 256), dim=1) for n in (40, 8192))
    embeddings = functional.normalize(embeddings + 2 * prototypes[:40], dim=1)  # close to one each, as trained ones are
    return embeddings, prototypes, torch.softmax(30 * embeddings @ prototypes.T, dim=1)


def loss_and_gradients(embeddings, prototypes, probs):
    values = [value.clone().requires_grad_() for value in (embeddings, prototypes)]
    total, *_ = prototype_loss(*values, [Targets(probs, torch.full((40,), 1 / 40), 1.0)], 0.1)
    return total.detach(), *torch.autograd.grad(total, values)


def test_factors_of_ten_bits_change_loss_and_gradient_little():
    """What autocast lets a GPU do: within what float16 would give, whose every logit is rounded as well."""
    data = problem()
    exact, *exact_grads = loss_and_gradients(*data)
    with TensorFloat32() as mode:
        loss, *grads = loss_and_gradients(*data)
    assert mode.products == 3, 'logits and both gradients'
    assert_close(loss, exact, rtol=1e-4, atol=0)
    for grad, expected in zip(grads, exact_grads):
        error = (grad - expected).norm() / expected.norm()
        assert 0 < error < 2e-3, error


def test_factors_of_ten_bits_change_the_targets_little():
    embeddings, prototypes, _ = problem()
    exact = SinkhornKnopp()(prototype_logits(embeddings, prototypes), 0.04)
    with TensorFloat32():
        logits = prototype_logits(embeddings, prototypes)
    found = SinkhornKnopp()(logits, 0.04)
    assert 0 < (found - exact).abs().sum(dim=1).max() < 5e-3
    # As float16 would round factors and logits; torch 2.1 has no such product on CPUs.
    product = embeddings.half().float() @ prototypes.half().float().T
    half = SinkhornKnopp()(product.half().float(), 0.04)
    assert (half - exact).abs().sum(dim=1).max() > (found - exact).abs().sum(dim=1).max()


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_logits_are_float32_whatever_the_autocast(dtype):
    embeddings, prototypes = torch.randn(8, 4), torch.randn(12, 4)
    with torch.autocast('cpu', torch.bfloat16):
        logits = prototype_logits(embeddings.to(dtype), prototypes)
    assert_close(logits, embeddings.to(dtype).float() @ prototypes.T)


@pytest.mark.parametrize(
    ('device', 'autocast', 'inside'), [('cuda', True, 'high'), ('cuda', False, None), ('cpu', True, None)]
)
def test_who_rounds_factors(monkeypatch, device, autocast, inside):
    """On a GPU, under autocast; and no longer than that."""
    set_to = []
    asked = torch.is_autocast_enabled  # by torch.autocast itself too, with the name of a device
    monkeypatch.setattr(torch, 'is_autocast_enabled', lambda *args: asked(*args) if args else autocast)
    monkeypatch.setattr(torch, 'get_float32_matmul_precision', lambda: 'highest')
    monkeypatch.setattr(torch, 'set_float32_matmul_precision', set_to.append)
    with pytest.raises(KeyError), float32_products(torch.device(device)):
        assert set_to == ([inside] if inside else [])
        raise KeyError
    assert set_to == ([inside, 'highest'] if inside else [])
