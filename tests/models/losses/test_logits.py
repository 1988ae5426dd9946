import pytest
import torch
from torch.testing import assert_close

from poa_mm.models.losses import prototype_logits
from poa_mm.models.losses.logits import in_parts, padded


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
