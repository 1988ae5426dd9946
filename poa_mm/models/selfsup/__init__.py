from .data_preprocessor import MultiBandDataPreprocessor, MultiCropDataPreprocessor
from .poa import POA

__all__ = ['POA', 'MultiBandDataPreprocessor', 'MultiCropDataPreprocessor']
