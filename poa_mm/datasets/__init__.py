from .digits import Digits
from .image_folder import ImageFolder
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
    'ImageFolder',
    'RandomAffineCrop',
    'RandomBackground',
    'ResumableSampler',
    'SafeLoadImageFromFile',
    'SeededDataset',
]
