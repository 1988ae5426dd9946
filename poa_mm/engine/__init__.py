from .hooks import (
    NonFiniteError,
    NonFiniteHook,
    POAScheduleHook,
    StrictPretrainedHook,
    SupernetCheckpointHook,
    TeacherEMAHook,
)
from .optimizers import (
    LayerDecayOptimWrapperConstructor,
    POAAmpOptimWrapper,
    POAOptimWrapper,
    POAOptimWrapperConstructor,
)

__all__ = [
    'LayerDecayOptimWrapperConstructor',
    'NonFiniteError',
    'NonFiniteHook',
    'POAAmpOptimWrapper',
    'POAOptimWrapper',
    'POAOptimWrapperConstructor',
    'POAScheduleHook',
    'StrictPretrainedHook',
    'SupernetCheckpointHook',
    'TeacherEMAHook',
]
