from .digits import Digits
from .source_dataset import HuggingFaceImages, SourceDataset, TarImages
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
    'HuggingFaceImages',
    'RandomBackground',
    'ResumableSampler',
    'SafeLoadImageFromFile',
    'SeededDataset',
    'SourceDataset',
    'TarImages',
]
