from .poa_schedule_hook import POAScheduleHook
from .strict_pretrained_hook import StrictPretrainedHook
from .supernet_checkpoint_hook import SupernetCheckpointHook
from .teacher_ema_hook import TeacherEMAHook

__all__ = ['POAScheduleHook', 'StrictPretrainedHook', 'SupernetCheckpointHook', 'TeacherEMAHook']
