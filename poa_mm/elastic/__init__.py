"""What makes a network elastic: subnets, their space and deck, sliced layers, patch sizes, cost. Needs torch only."""

from .cost import Cost, resnet_cost, swin_cost, transformer_cost
from .deck import SubnetDeck
from .layers import (
    ElasticConv2d,
    ElasticGroupNorm,
    ElasticLayer,
    ElasticLayerNorm,
    ElasticLayerScale,
    ElasticLinear,
    leading,
    sliced_state_dict,
)
from .patches import overlaps, resize_grid, resize_patches
from .space import SubnetSpace
from .subnet import Subnet, kept_blocks

__all__ = [
    'Cost',
    'ElasticConv2d',
    'ElasticGroupNorm',
    'ElasticLayer',
    'ElasticLayerNorm',
    'ElasticLayerScale',
    'ElasticLinear',
    'Subnet',
    'SubnetDeck',
    'SubnetSpace',
    'kept_blocks',
    'leading',
    'overlaps',
    'resize_grid',
    'resize_patches',
    'resnet_cost',
    'sliced_state_dict',
    'swin_cost',
    'transformer_cost',
]
