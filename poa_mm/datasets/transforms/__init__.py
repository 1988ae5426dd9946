from ..decoding import BadImageError
from .affine_crop import RandomAffineCrop
from .block_mask import BlockMask
from .fast import (
    FastColorJitter,
    FastGaussianBlur,
    FastMultiView,
    FastRandomFlip,
    FastRandomGrayscale,
    FastRandomResizedCrop,
)
from .load_bands import LoadBands
from .loading import SafeLoadImageFromFile
from .random_background import RandomBackground

__all__ = [
    'BadImageError',
    'BlockMask',
    'FastColorJitter',
    'FastGaussianBlur',
    'FastMultiView',
    'FastRandomFlip',
    'FastRandomGrayscale',
    'FastRandomResizedCrop',
    'LoadBands',
    'RandomAffineCrop',
    'RandomBackground',
    'SafeLoadImageFromFile',
]
