from .centering import MeanCentering, SinkhornKnopp, centred
from .cross_entropy import CropLosses, class_loss, patch_loss, same_view_loss
from .feature_loss import feature_loss
from .koleo import KoLeoLoss
from .logits import prototype_logits
from .prototype_loss import Targets, prototype_loss

__all__ = [
    'CropLosses',
    'KoLeoLoss',
    'MeanCentering',
    'SinkhornKnopp',
    'Targets',
    'centred',
    'class_loss',
    'feature_loss',
    'patch_loss',
    'prototype_logits',
    'prototype_loss',
    'same_view_loss',
]
