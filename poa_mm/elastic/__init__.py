"""What makes a network elastic: subnets, their space and deck, sliced layers, cost. Needs torch only."""

from .cost import Cost, transformer_cost
from .deck import SubnetDeck
from .layers import (
    ElasticLayer,
    ElasticLayerNorm,
    ElasticLayerScale,
    ElasticLinear,
    leading,
    sliced_state_dict,
)
from .space import SubnetSpace
from .subnet import Subnet, kept_blocks

__all__ = [
    'Cost',
    'ElasticLayer',
    'ElasticLayerNorm',
    'ElasticLayerScale',
    'ElasticLinear',
    'Subnet',
    'SubnetDeck',
    'SubnetSpace',
    'kept_blocks',
    'leading',
    'sliced_state_dict',
    'transformer_cost',
]
