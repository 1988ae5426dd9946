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
    'RandomBackground',
    'ResumableSampler',
    'SafeLoadImageFromFile',
    'SeededDataset',
]
