from .backbones import ElasticVisionTransformer
from .heads import LinearSweepHead, MultiPrototypeHead
from .losses import KoLeoLoss, MeanCentering, SinkhornKnopp
from .selfsup import POA

__all__ = [
    'POA',
    'ElasticVisionTransformer',
    'KoLeoLoss',
    'LinearSweepHead',
    'MeanCentering',
    'MultiPrototypeHead',
    'SinkhornKnopp',
]
