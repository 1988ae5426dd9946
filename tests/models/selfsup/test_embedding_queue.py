import pytest
import torch
from torch.testing import assert_close

from poa_mm.models import POA
from poa_mm.models.selfsup.embedding_queue import EmbeddingQueue
from test_micro_batches import HEAD, VIT, make_data
