from .poa_schedule_hook import POAScheduleHook
from .supernet_checkpoint_hook import SupernetCheckpointHook
from .teacher_ema_hook import TeacherEMAHook

__all__ = ['POAScheduleHook', 'SupernetCheckpointHook', 'TeacherEMAHook']
