from .hooks import (
    BadDataError,
    BadDataHook,
    CompileBlocksHook,
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
from .strategy import FullyShardStrategy

__all__ = [
    'BadDataError',
    'BadDataHook',
    'CompileBlocksHook',
    'FullyShardStrategy',
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
