"""ONNX programs for measurements: the same that an export writes, without its files beside and its verification."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from poa_mm.deploy.stock import StockNetwork
from poa_mm.elastic import Subnet

from . import to_onnx
from .network import ExportNetwork
from .options import ExportOptions
from .run import check_libraries


class ProgramWriter:
    """What :func:`~poa_mm.evaluation.scorecard.make_scorecard` takes as ``write_onnx``.

    Raises:
        ExportError: If a library is missing or too old; says what to install.
    """

    def __init__(self) -> None:
        check_libraries('onnx')

    def __call__(
        self,
        subnet: Subnet,
        config: Mapping[str, Any],
        state: Mapping[str, Tensor],
        image_size: tuple[int, int],
        folder: Path,
    ) -> None:
        """Write the program of a stock network into a folder.

        Raises:
            ExportError: If ONNX cannot hold it.
        """
        # How images are normalised changes nothing of what a program costs.
        stock = StockNetwork(subnet, config, state, {'to_rgb': True}, image_size, '', '')
        network, options = ExportNetwork(stock), ExportOptions()
        to_onnx.check(network, options)
        to_onnx.write(network, folder, options)
