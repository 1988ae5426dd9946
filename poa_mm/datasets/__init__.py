from .digits import Digits
from .transforms import BlockMask, RandomBackground

__all__ = ['BlockMask', 'Digits', 'RandomBackground']
