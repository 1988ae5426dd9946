from .hooks import POAScheduleHook, StrictPretrainedHook, SupernetCheckpointHook, TeacherEMAHook
from .optimizers import (
    LayerDecayOptimWrapperConstructor,
    POAAmpOptimWrapper,
    POAOptimWrapper,
    POAOptimWrapperConstructor,
)

__all__ = [
    'LayerDecayOptimWrapperConstructor',
    'POAAmpOptimWrapper',
    'POAOptimWrapper',
    'POAOptimWrapperConstructor',
    'POAScheduleHook',
    'StrictPretrainedHook',
    'SupernetCheckpointHook',
    'TeacherEMAHook',
]
