from .backbones import BottleneckResNet, ElasticResNet, ElasticSwinTransformer, ElasticVisionTransformer
from .classifiers import SubnetClassifier
from .heads import LinearSweepHead, MultiPrototypeHead
from .losses import KoLeoLoss, MeanCentering, SinkhornKnopp
from .selfsup import POA, MultiBandDataPreprocessor, MultiCropDataPreprocessor

__all__ = [
    'POA',
    'BottleneckResNet',
    'ElasticResNet',
    'ElasticSwinTransformer',
    'ElasticVisionTransformer',
    'KoLeoLoss',
    'LinearSweepHead',
    'MeanCentering',
    'MultiBandDataPreprocessor',
    'MultiCropDataPreprocessor',
    'MultiPrototypeHead',
    'SinkhornKnopp',
    'SubnetClassifier',
]
