"""From a batch of the loader to what POA computes with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
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


@MODELS.register_module()
class MultiBandDataPreprocessor(MultiCropDataPreprocessor):
    """:class:`MultiCropDataPreprocessor` for as many channels as ``mean`` has, which is compared with the images.

    Args:
        mean: Of each channel, on the scale of 0 to 255 that :class:`~poa_mm.datasets.LoadBands` gives.
        std: Standard deviation of each channel.
        to_rgb: Whether three channels are turned from BGR to RGB. Default: False.
        value_range: What :class:`~poa_mm.datasets.LoadBands` is given; noted for those who use the network.
            Default: None.
        **options: Of :class:`MultiCropDataPreprocessor`.

    Raises:
        ValueError: If mean and std have different lengths, a deviation is not positive, or ``to_rgb`` is set for
            another number of channels than three.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        to_rgb: bool = False,
        value_range: Any = None,
        **options: Any,
    ):
        if len(mean) != len(std) or not all(value > 0 for value in std):
            raise ValueError(f'mean has {len(mean)} values, std {len(std)}: each channel needs both, and std above 0')
        if to_rgb and len(mean) != 3:
            raise ValueError(f'to_rgb turns three channels, not {len(mean)}')
        super().__init__(to_rgb=to_rgb, **options)
        for name, values in (('mean', mean), ('std', std)):  # mmengine's class takes one or three
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1), False)
        self._enable_normalize = True
        self.value_range = value_range

    def _normalised(self, view: Tensor) -> Tensor:
        if view.shape[1] != len(self.mean):
            raise ValueError(f'images have {view.shape[1]} channels, mean of the data preprocessor {len(self.mean)}')
        return super()._normalised(view)
