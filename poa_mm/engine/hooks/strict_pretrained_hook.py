"""Pre-trained weights that must fit."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from ..pretrained import load_pretrained
from .model import model_of
from .once import OnceHook


@HOOKS.register_module()
class StrictPretrainedHook(OnceHook):
    """Stops a training run whose ``init_cfg=dict(type='Pretrained', ...)`` names a file that does not fit.

    mmengine itself would only warn and train what is left of the network from scratch. Runs before the
    weights are initialised, and so before those of ``load_from`` or of a resumed run are loaded, which it
    leaves alone. A resumed run is checked as well: mmengine reads the file there, too.

    Args:
        new: Names of submodules of the pre-trained module that the task adds, and the file may therefore lack: all
            of a submodule's weights or none. Anything else has to fit. Default: none.
        resize: Whether position embeddings of another grid of patches, and relative position biases of another
            window, are resized, which the log says. Otherwise the run stops. Default: True.
        differ: Settings in which the network may differ from what the file says of its own, by their last name:
            ``('stride', 'dilation')``. Default: none.
    """

    def __init__(self, new: Sequence[str] = (), resize: bool = True, differ: Sequence[str] = ()):
        for name, value in (('new', new), ('differ', differ)):
            if isinstance(value, str):
                raise TypeError(f'{name} must be a sequence of names, such as ({value!r},); got {value!r}')
        self.new = tuple(new)
        self.resize = resize
        self.differ = tuple(differ)

    def check(self, model: nn.Module) -> None:
        """Check, and load, what ``init_cfg`` names in a model.

        Raises:
            CheckpointError: As :func:`~poa_mm.engine.pretrained.load_pretrained`.
        """
        load_pretrained(model, self.new, self.resize, self.differ)

    def before_run(self, runner: Runner) -> None:
        """Check the files of the whole model.

        Raises:
            CheckpointError: As :func:`~poa_mm.engine.pretrained.load_pretrained`.
        """
        super().before_run(runner)
        if isinstance(runner.optim_wrapper, OptimWrapper):  # built by now where the run is to train, only there
            self.check(model_of(runner))
