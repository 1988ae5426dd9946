from .block_mask import BlockMask
from .random_background import RandomBackground

__all__ = ['BlockMask', 'RandomBackground']
