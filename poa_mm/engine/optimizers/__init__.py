from .constructor import POAOptimWrapperConstructor
from .layer_decay import LayerDecayOptimWrapperConstructor
from .optim_wrapper import GuardedOptimWrapper, POAAmpOptimWrapper, POAOptimWrapper

__all__ = [
    'GuardedOptimWrapper',
    'LayerDecayOptimWrapperConstructor',
    'POAAmpOptimWrapper',
    'POAOptimWrapper',
    'POAOptimWrapperConstructor',
]
