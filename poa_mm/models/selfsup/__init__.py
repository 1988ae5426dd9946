from .data_preprocessor import MultiCropDataPreprocessor
from .poa import POA

__all__ = ['POA', 'MultiCropDataPreprocessor']
