from .digits import Digits
from .resumable import ResumableSampler, SeededDataset
from .transforms import (
    BlockMask,
    FastColorJitter,
    FastGaussianBlur,
    FastMultiView,
    FastRandomFlip,
    FastRandomGrayscale,
    FastRandomResizedCrop,
    RandomBackground,
)

__all__ = [
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
    'SeededDataset',
]
