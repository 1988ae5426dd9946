from .backbones import BottleneckResNet, ElasticResNet, ElasticSwinTransformer, ElasticVisionTransformer
from .classifiers import SubnetClassifier
from .heads import LinearSweepHead, MultiPrototypeHead
from .losses import KoLeoLoss, MeanCentering, SinkhornKnopp
from .selfsup import POA, MultiCropDataPreprocessor

__all__ = [
    'POA',
    'BottleneckResNet',
    'ElasticResNet',
    'ElasticSwinTransformer',
    'ElasticVisionTransformer',
    'KoLeoLoss',
    'LinearSweepHead',
    'MeanCentering',
    'MultiCropDataPreprocessor',
    'MultiPrototypeHead',
    'SinkhornKnopp',
    'SubnetClassifier',
]
