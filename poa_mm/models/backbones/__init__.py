from .bottleneck_resnet import BottleneckResNet
from .elastic_backbone import Features
from .elastic_resnet import ElasticResNet
from .elastic_swin import ElasticSwinTransformer
from .elastic_vit import ElasticVisionTransformer

__all__ = ['BottleneckResNet', 'ElasticResNet', 'ElasticSwinTransformer', 'ElasticVisionTransformer', 'Features']
