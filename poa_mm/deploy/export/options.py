"""What may be chosen of an export."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

TOLERANCE = 0.01  # of the k-NN accuracy


@dataclass(frozen=True)
class ExportOptions:
    """Choices beside the formats.

    Args:
        dynamic_size: ONNX and torch: take images of any height and width, in steps of the network's stride.
            Default: False, the size of the pre-training only. The batch is free either way.
        fp16: ONNX: a second file in half precision. Default: False.
        int8: ONNX: a further file with 8-bit weights and activations. Default: False.
        config: Config with the entry ``knn``, whose score decides about ``fp16`` and ``int8``. Default: None.
        images: Folder of images that ``int8`` is calibrated on. Default: None, those of the k-NN's bank.
        tolerance: How much of the k-NN accuracy, in [0, 1], ``fp16`` and ``int8`` may lose. Default: None, which is
            ``TOLERANCE``.
    """

    dynamic_size: bool = False
    fp16: bool = False
    int8: bool = False
    config: Any = None
    images: str | os.PathLike | None = None
    tolerance: float | None = None

    @property
    def allowed_loss(self) -> float:
        """The tolerance that counts."""
        return TOLERANCE if self.tolerance is None else self.tolerance
