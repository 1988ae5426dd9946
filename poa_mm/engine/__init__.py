from .hooks import POAScheduleHook, SupernetCheckpointHook, TeacherEMAHook
from .optimizers import POAAmpOptimWrapper, POAOptimWrapper, POAOptimWrapperConstructor

__all__ = [
    'POAAmpOptimWrapper',
    'POAOptimWrapper',
    'POAOptimWrapperConstructor',
    'POAScheduleHook',
    'SupernetCheckpointHook',
    'TeacherEMAHook',
]
