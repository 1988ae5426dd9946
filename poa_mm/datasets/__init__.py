from .digits import Digits
from .transforms import BlockMask

__all__ = ['BlockMask', 'Digits']
