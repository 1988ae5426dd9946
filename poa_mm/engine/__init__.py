from .hooks import (
    NonFiniteError,
    NonFiniteHook,
    POAScheduleHook,
    PreemptionHook,
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
    'PreemptionHook',
    'StrictPretrainedHook',
    'SupernetCheckpointHook',
    'TeacherEMAHook',
]
