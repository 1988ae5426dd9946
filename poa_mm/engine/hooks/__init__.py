from .activation_checkpoint_hook import ActivationCheckpointHook
from .bad_data_hook import BadDataError, BadDataHook
from .checkpoint_hook import POACheckpointHook
from .compile_blocks_hook import CompileBlocksHook
from .nonfinite_hook import NonFiniteError, NonFiniteHook
from .poa_schedule_hook import POAScheduleHook
from .preemption_hook import PreemptionHook
from .run_health_hook import RunHealthHook
from .strict_pretrained_hook import StrictPretrainedHook
from .supernet_checkpoint_hook import SupernetCheckpointHook
from .teacher_ema_hook import TeacherEMAHook

__all__ = [
    'ActivationCheckpointHook',
    'BadDataError',
    'BadDataHook',
    'CompileBlocksHook',
    'NonFiniteError',
    'NonFiniteHook',
    'POACheckpointHook',
    'POAScheduleHook',
    'PreemptionHook',
    'RunHealthHook',
    'StrictPretrainedHook',
    'SupernetCheckpointHook',
    'TeacherEMAHook',
]
