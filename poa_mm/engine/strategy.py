"""Training with everything that lasts between two steps split over the ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine._strategy import DDPStrategy
from mmengine.device import get_device
from mmengine.dist import all_gather_object, get_world_size
from mmengine.registry import STRATEGIES
from torch import Tensor, nn

from poa_mm.checkpoint import CheckpointError, check_state, is_sharded
from poa_mm.checkpoint.sharded import check_torch, load_tensors, optimizer_tensors, save_sharded
from poa_mm.models.heads.multi_prototype_head import Projector, Prototypes
from poa_mm.models.selfsup.frozen_teacher import complete

from .console import ShortConsole
from .pretrained import load_pretrained
from .resume import SCHEME, read_run

DTYPES = {'bfloat16': torch.bfloat16, 'float16': torch.float16, 'float32': torch.float32}


@STRATEGIES.register_module()
class FullyShardStrategy(ShortConsole, DDPStrategy):
    """Shards a :class:`~poa_mm.models.POA` over all ranks with torch's ``fully_shard`` (FSDP2)::

        runner_type = 'FlexibleRunner'
        strategy = dict(type='FullyShardStrategy')

    Each rank keeps ``1 / world_size`` of each parameter of student and teacher, of the gradients and of what the
    optimizer remembers, so the moving average, the optimizer's step and the norms for clipping (which are those of
    the whole) work on shards. The step computes what it computes in distributed training without sharding.

    - The student is gathered as a whole when a step begins and its gradient reduced when the step ends. Not block by
      block: ranks deal subnets of different depths, and a block can only be gathered by all ranks at the same time. It
      also leaves :class:`~poa_mm.models.selfsup.early_backward.EarlyBackward` as it is: while a step lasts, the
      parameters are plain ones, and sharding acts before and after it.
    - The teacher is the same network on all ranks. Its blocks and heads are gathered one at a time and freed. So is a
      frozen teacher; of another family than the student's, as a whole.

    A strategy of mmengine's ``FlexibleRunner`` rather than a model wrapper of its ``Runner``, because the latter
    initialises weights after it has wrapped the model, and saves on rank 0 only. Its loops and hooks are the same.

    Checkpoints are folders, see :func:`~poa_mm.checkpoint.sharded.save_sharded`. A file of a run without
    sharding can be loaded (``load_from``), but not resumed.

    Args:
        param_dtype: ``'bfloat16'`` or ``'float16'``: what parameters are gathered in and computed with; gradients are
            reduced in float32. Not tried on GPUs. Default: None, their own.
        **kwargs: Of mmengine's ``DDPStrategy``, such as ``sync_bn``.

    Raises:
        ValueError: If torch is too old, the run has no launcher, or ``param_dtype`` is unknown.
    """

    def __init__(self, *, param_dtype: str | None = None, **kwargs: Any):
        check_torch(type(self).__name__)
        if param_dtype is not None and param_dtype not in DTYPES:
            raise ValueError(f'param_dtype {param_dtype!r} is not one of {", ".join(DTYPES)}')
        super().__init__(**kwargs)
        if not self.distributed:
            raise ValueError('FullyShardStrategy needs a launcher, for one GPU, too: tools/dist_train.sh CONFIG GPUS')
        self.param_dtype = param_dtype

    def _init_model_weights(self, model: nn.Module) -> nn.Module:
        if model.frozen_teacher is not None:
            load_pretrained(model, resize=True)  # strictly, as where a Runner is built
        return super()._init_model_weights(model)

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        from torch.distributed.device_mesh import init_device_mesh  # torch 2.1 lacks some of these
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

        _check_same_blocks(model)
        model = self.convert_model(model)
        model.data_preprocessor.to(get_device())
        options = dict(mesh=init_device_mesh(get_device(), (get_world_size(),)))
        if self.param_dtype is not None:
            options['mp_policy'] = MixedPrecisionPolicy(DTYPES[self.param_dtype], reduce_dtype=torch.float32)
        teachers = [model.teacher['backbone']]
        if model.frozen_teacher is not None:
            teachers.append(model.frozen_teacher)
        for module in (*model.teacher['head'].modules(), *(part for teacher in teachers for part in teacher.modules())):
            if isinstance(module, (model.backbone.block, Projector, Prototypes)):
                fully_shard(module, **options)
            if isinstance(module, Prototypes):
                register_fsdp_forward_method(module, 'matrix')
        for teacher in teachers:
            register_fsdp_forward_method(fully_shard(teacher, **options), 'extract_features')
        return fully_shard(model, **options)  # with the rest, which is the student

    def save_checkpoint(
        self,
        filename: str,
        *,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        extra_ckpt: dict | None = None,
        callback: Callable[[dict], None] | None = None,
    ) -> None:
        """Write a sharded checkpoint; all ranks take part. The arguments are those of mmengine's strategies.

        Raises:
            CheckpointWriteError: As :func:`~poa_mm.checkpoint.sharded.save_sharded`.
        """
        checkpoint = {'state_dict': self.model.state_dict(), **(extra_ckpt or {})}
        if save_optimizer:
            checkpoint['optimizer'] = self.optim_state_dict()
        if save_param_scheduler and hasattr(self, 'param_schedulers'):
            checkpoint['param_schedulers'] = self.scheduler_state_dict()
        checkpoint.setdefault('meta', {}).update(seed=self.seed, time=time.strftime('%Y%m%d_%H%M%S'))
        if callback is not None:
            callback(checkpoint)
        save_sharded(checkpoint, filename)

    def load_checkpoint(self, filename: str, *, callback: Callable[[dict], None] | None = None, **kwargs: Any) -> dict:
        """Load weights of any number of ranks; each rank reads its shards. The arguments are those of mmengine's.

        Raises:
            CheckpointError: If they do not fit the model to the last key.
        """
        path = Path(filename.removeprefix(SCHEME))
        if not is_sharded(path):
            return super().load_checkpoint(filename, callback=callback, **kwargs)
        self.logger.info(f'Load checkpoint from {path}')
        checkpoint = read_run(path, weights=False)
        if callback is not None:
            callback(checkpoint)
        weights = self.model.state_dict()
        check_state(weights, checkpoint.pop('state_dict'), f'{path}: state_dict')
        load_tensors(path, {f'state_dict.{name}': tensor for name, tensor in weights.items()})
        checkpoint.get('optimizer', {})['shards'] = path
        return checkpoint

    def load_model_state_dict(self, state_dict: Mapping[str, Any], **kwargs: Any) -> None:
        """Load whole weights.

        Raises:
            CheckpointError: If they do not fit the model to the last key.
        """
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

        state_dict = dict(state_dict)
        if self.model.frozen_teacher is not None:
            complete(self.model, state_dict)
            state_dict = {name: _whole(value) for name, value in state_dict.items()}
        check_state(self.model.state_dict(), state_dict, 'the checkpoint')
        set_model_state_dict(self.model, state_dict, options=StateDictOptions(full_state_dict=True))

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Load what the optimizer remembers, each rank its shards.

        Raises:
            CheckpointError: If the checkpoint is one of a run without sharding, or of another optimizer.
        """
        path = state_dict.pop('shards', None)
        if path is None:
            raise CheckpointError(
                'the checkpoint to resume is one of a run without sharding; load_from starts a new run from its weights'
            )
        params = [param for group in self.optim_wrapper.optimizer.param_groups for param in group['params']]
        if len(params) != sum(len(group['params']) for group in state_dict['param_groups']):
            raise CheckpointError(f'{path}: its optimizer is not that of this run: it has other parameters')
        state = {
            index: {name: _to_fill(value, params[index]) for name, value in entries.items()}
            for index, entries in state_dict['state'].items()
        }
        load_tensors(path, optimizer_tensors(state))
        self.optim_wrapper.load_state_dict({**state_dict, 'state': state})


def _whole(value: Tensor) -> Tensor:
    """A tensor that is not sharded; all ranks take part."""
    return value.full_tensor() if hasattr(value, 'full_tensor') else value


def _to_fill(value: Tensor, param: Tensor) -> Tensor:
    """Space for what an optimizer remembers of a parameter: sharded alike, or a number."""
    return torch.empty_like(param) if value.shape == param.shape else torch.empty_like(value, device='cpu')


def _check_same_blocks(model: nn.Module) -> None:
    """Check that the ranks have gradients of the same parameters, which is what they reduce together.

    Raises:
        ValueError: If they have not.
    """
    if model.weight_is == 0 and any(all_gather_object(model.deck.rank)):
        raise ValueError(
            'FullyShardStrategy: with weight_is=0, each rank trains the blocks of its own subnet only; '
            'model.deck.sync=True deals all ranks the same'
        )
