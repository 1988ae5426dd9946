from .constructor import POAOptimWrapperConstructor
from .optim_wrapper import POAAmpOptimWrapper, POAOptimWrapper

__all__ = ['POAAmpOptimWrapper', 'POAOptimWrapper', 'POAOptimWrapperConstructor']
