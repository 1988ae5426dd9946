from .classes import RelabelledDataset
from .digits import Digits
from .image_folder import ImageFolder
from .resumable import ResumableSampler, SeededDataset
from .source_dataset import HuggingFaceImages, SourceDataset, TarImages
from .transforms import (
    BadImageError,
    BlockMask,
    FastColorJitter,
    FastGaussianBlur,
    FastMultiView,
    FastRandomFlip,
    FastRandomGrayscale,
    FastRandomResizedCrop,
    LoadBands,
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
    'HuggingFaceImages',
    'ImageFolder',
    'LoadBands',
    'RandomAffineCrop',
    'RandomBackground',
    'RelabelledDataset',
    'ResumableSampler',
    'SafeLoadImageFromFile',
    'SeededDataset',
    'SourceDataset',
    'TarImages',
]
