from .block_mask import BlockMask

__all__ = ['BlockMask']
