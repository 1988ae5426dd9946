"""From a batch of the loader to what POA computes with."""

from __future__ import annotations

from typing import Any

from mmengine.registry import MODELS
from mmpretrain.models import SelfSupDataPreprocessor
from torch import Tensor


@MODELS.register_module()
class MultiCropDataPreprocessor(SelfSupDataPreprocessor):
    """mmpretrain's ``SelfSupDataPreprocessor``, to the same numbers, which never waits for the device.

    - Images are copied to it while the host goes on, which takes ``pin_memory=True`` of the loader.
    - Data samples stay where they are, so that the host can look at masks: see :meth:`MultiCropBatch.collate`.

    Args:
        non_blocking: Copy images while the host goes on. Default: True.
        **options: Of ``SelfSupDataPreprocessor``: ``mean``, ``std``, ``to_rgb`` and so on.
    """

    def __init__(self, non_blocking: bool = True, **options: Any):
        super().__init__(non_blocking=non_blocking, **options)

    def forward(self, data: dict, training: bool = False) -> dict:
        """Move and normalise ``data['inputs']``: a list of views, each ``(B, C, H, W)``, or one tensor."""
        inputs = self.cast_data(data['inputs'])
        one = isinstance(inputs, Tensor)
        views = [self._normalised(view) for view in ([inputs] if one else inputs)]
        return {'inputs': views[0] if one else views, 'data_samples': data.get('data_samples')}

    def _normalised(self, view: Tensor) -> Tensor:
        if self._channel_conversion:
            view = view.flip(1)  # an index by a list would be copied to the device, and waited for
        view = view.float()
        return (view - self.mean) / self.std if self._enable_normalize else view
