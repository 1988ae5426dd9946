"""SyncBN on CPUs, in configs, in the defaults of classes, and deep inside of modules."""

import copy

import pytest
import torch
import torch.distributed as dist
from mmengine.registry import MODEL_WRAPPERS, MODELS, DefaultScope, Registry
from torch import nn

from poa_mm.engine.sync_bn import unsync_bn

SYNC = dict(type='SyncBN', requires_grad=True)


def registry():
    found = Registry('some')

    @found.register_module()
    class Quiet:
        def __init__(self, channels, norm_cfg=SYNC):
            pass

    @found.register_module()
    class Other:
        def __init__(self, *, norm=dict(type='MMSyncBN'), act=dict(type='ReLU')):  # noqa: B006
            pass

    return found


@pytest.mark.parametrize(
    ('config', 'expected', 'number'),
    [
        (dict(type='Quiet', channels=3), dict(type='Quiet', channels=3, norm_cfg=dict(SYNC, type='BN')), 1),
        (dict(type='Other'), dict(type='Other', norm=dict(type='BN')), 1),
        (dict(type='Quiet', norm_cfg=dict(type='GN')), dict(type='Quiet', norm_cfg=dict(type='GN')), 0),
        (dict(type='Quiet', norm_cfg=None), dict(type='Quiet', norm_cfg=None), 0),
        (dict(type='Quiet', norm_cfg=SYNC), dict(type='Quiet', norm_cfg=dict(SYNC, type='BN')), 1),
        (dict(type='Unknown', name='SyncBN'), dict(type='Unknown', name='SyncBN'), 0),
        ([dict(necks=(dict(type='Other'),))], [dict(necks=(dict(type='Other', norm=dict(type='BN')),))], 1),
        (None, None, 0),
    ],
)
def test_given_or_by_default(config, expected, number):
    config = copy.deepcopy(config)
    assert unsync_bn(config, registry()) == number
    assert config == expected


def test_defaults_are_not_changed():
    unsync_bn(dict(type='Quiet'), registry())
    assert dict(type='SyncBN', requires_grad=True) == SYNC


def test_classes_of_libraries_below_are_found():
    pytest.importorskip('mmseg.models')
    for name in ('Feature2Pyramid', 'mmseg.Feature2Pyramid'):
        config = dict(type=name, embed_dim=8, rescales=[4, 2, 1, 0.5])
        assert unsync_bn(config) == 1 and config['norm_cfg']['type'] == 'BN'
    config['type'] = 'mmseg.Feature2Pyramid'
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in MODELS.build(config).modules())
    DefaultScope._instance_dict.clear()


@pytest.fixture
def alone(tmp_path):
    """A process group of one process."""
    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.skipif(torch.cuda.is_available(), reason='about machines without a GPU')
def test_what_modules_make_themselves(alone):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.SyncBatchNorm(4)))
    weight = model[1][0].weight
    with pytest.raises(ValueError, match='GPU modules'):
        nn.parallel.DistributedDataParallel(copy.deepcopy(model))
    wrapped = MODEL_WRAPPERS.build(dict(type='CPUDistributedDataParallel', module=model, device_ids=None))
    assert wrapped.module is model and model[1][0].weight is weight
    images = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(wrapped(images).mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-6, rtol=0)
