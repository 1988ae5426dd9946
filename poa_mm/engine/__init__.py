from .hooks import (
    NonFiniteError,
    NonFiniteHook,
    POAScheduleHook,
    PreemptionHook,
    RunHealthHook,
    StrictPretrainedHook,
    SupernetCheckpointHook,
    TeacherEMAHook,
)
from .loops import ResumableTrainLoop
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
    'ResumableTrainLoop',
    'RunHealthHook',
    'StrictPretrainedHook',
    'SupernetCheckpointHook',
    'TeacherEMAHook',
]
