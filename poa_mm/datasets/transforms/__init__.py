from .block_mask import BlockMask
from .fast import (
    FastColorJitter,
    FastGaussianBlur,
    FastMultiView,
    FastRandomFlip,
    FastRandomGrayscale,
    FastRandomResizedCrop,
)
from .random_background import RandomBackground

__all__ = [
    'BlockMask',
    'FastColorJitter',
    'FastGaussianBlur',
    'FastMultiView',
    'FastRandomFlip',
    'FastRandomGrayscale',
    'FastRandomResizedCrop',
    'RandomBackground',
]
