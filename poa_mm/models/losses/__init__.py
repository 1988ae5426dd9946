from .centering import MeanCentering, SinkhornKnopp
from .cross_entropy import CropLosses, class_loss, patch_loss, same_view_loss
from .koleo import KoLeoLoss

__all__ = [
    'CropLosses',
    'KoLeoLoss',
    'MeanCentering',
    'SinkhornKnopp',
    'class_loss',
    'patch_loss',
    'same_view_loss',
]
