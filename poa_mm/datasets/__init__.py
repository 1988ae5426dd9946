from .digits import Digits
from .resumable import ResumableSampler, SeededDataset
from .transforms import (
    BadImageError,
    BlockMask,
    FastColorJitter,
    FastGaussianBlur,
    FastMultiView,
    FastRandomFlip,
    FastRandomGrayscale,
    FastRandomResizedCrop,
    RandomAffineCrop,
    RandomBackground,
    SafeLoadImageFromFile,
)

__all__ = [
    'BadImageError',
    'BlockMask',
    'Digits',
    'FastColorJitter',
    'FastGaussianBlur',
    'FastMultiView',
    'FastRandomFlip',
    'FastRandomGrayscale',
    'FastRandomResizedCrop',
    'RandomAffineCrop',
    'RandomBackground',
    'ResumableSampler',
    'SafeLoadImageFromFile',
    'SeededDataset',
]
