from .hooks import (
    BadDataError,
    BadDataHook,
    NonFiniteError,
    NonFiniteHook,
    POACheckpointHook,
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
    'BadDataError',
    'BadDataHook',
    'LayerDecayOptimWrapperConstructor',
    'NonFiniteError',
    'NonFiniteHook',
    'POAAmpOptimWrapper',
    'POACheckpointHook',
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
