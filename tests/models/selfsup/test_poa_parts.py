"""Parts of POA that must fit each other."""

import copy

import pytest
from mmengine.registry import MODELS

import poa_mm  # noqa: F401


@pytest.mark.parametrize('family', ['vit', 'swin', 'resnet'])
@pytest.mark.parametrize('factor', [2, 0.5])
def test_a_head_for_other_channels_is_refused(supernets, family, factor):
    """A wider one would run, and take the full network for a subnet."""
    head = dict(type='MultiPrototypeHead', num_prototypes=[4], hidden_channels=8, bottleneck_channels=4)
    backbone = MODELS.build(copy.deepcopy(supernets[family]))
    channels = backbone.feature_channels
    poa = dict(type='POA', backbone=backbone)
    assert MODELS.build(poa | dict(head=head)).head.in_channels == channels
    MODELS.build(poa | dict(head=dict(head, in_channels=channels)))
    other = int(channels * factor)
    with pytest.raises(ValueError, match=rf'head\.in_channels {other} are not the {channels} channels'):
        MODELS.build(poa | dict(head=dict(head, in_channels=other)))
