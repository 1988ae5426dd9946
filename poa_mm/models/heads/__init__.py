from .linear_sweep_head import LinearSweepHead, LinearSweepOptimWrapperConstructor
from .multi_prototype_head import MultiPrototypeHead

__all__ = ['LinearSweepHead', 'LinearSweepOptimWrapperConstructor', 'MultiPrototypeHead']
