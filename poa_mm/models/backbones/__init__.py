from .elastic_backbone import Features
from .elastic_vit import ElasticVisionTransformer

__all__ = ['ElasticVisionTransformer', 'Features']
