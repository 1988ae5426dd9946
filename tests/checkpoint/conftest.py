"""Checkpoints of a small supernet, as training writes them."""

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import MessageHub
from small_supernet import MODEL

from poa_mm.checkpoint import describe_supernet
from poa_mm.models import POA


@pytest.fixture(scope='module')
def model(randomise):
    return randomise(POA(**{key: value for key, value in MODEL.items() if key != 'type'}))


@pytest.fixture
def content(model):
    """What training writes, logs of mmengine included."""
    hub = MessageHub(name='test')
    hub.update_scalars({'train/loss': 0.5, 'train/lr': np.float64(0.1)})
    hub.update_info('best', np.float32(0.25))
    return {
        'meta': {'epoch': 1, 'cfg': 'a = 1', 'dataset_meta': ConfigDict(classes=('a', 'b')), 'seen': {1, 2}},
        'state_dict': model.state_dict(),
        'message_hub': hub.state_dict(),
        'optimizer': torch.optim.AdamW(model.backbone.parameters()).state_dict(),
        'poa': describe_supernet(MODEL) | {'deck': {'seed': 3, 'dealt': 7}},
    }


@pytest.fixture
def save(tmp_path):
    def write(content, name='poa.pth', **options):
        torch.save(content, tmp_path / name, **options)
        return tmp_path / name

    return write
