from .backbones import ElasticVisionTransformer
from .heads import MultiPrototypeHead
from .losses import KoLeoLoss, MeanCentering, SinkhornKnopp
from .selfsup import POA

__all__ = ['POA', 'ElasticVisionTransformer', 'KoLeoLoss', 'MeanCentering', 'MultiPrototypeHead', 'SinkhornKnopp']
