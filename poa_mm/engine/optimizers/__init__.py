from .constructor import POAOptimWrapperConstructor
from .layer_decay import LayerDecayOptimWrapperConstructor
from .optim_wrapper import POAAmpOptimWrapper, POAOptimWrapper

__all__ = ['LayerDecayOptimWrapperConstructor', 'POAAmpOptimWrapper', 'POAOptimWrapper', 'POAOptimWrapperConstructor']
