"""ONNX files, by torch's exporter (``dynamo=True``); in half precision and 8 bits by onnxruntime's tools."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .network import ExportError, ExportNetwork
from .options import ExportOptions
from .to_torch import TORCH, check, program  # noqa: F401

MODULES = ('onnx', 'onnxscript', 'onnxruntime')
INPUT, OUTPUTS = 'images', ('features', 'feature_map')
LARGEST = 1_900_000_000  # bytes of weights that fit into one file of protobuf, which ends at 2 GiB


def write(network: ExportNetwork, folder: Path, options: ExportOptions) -> dict[str, Any]:
    """Write ``poa_<subnet>.onnx``, with its weights beside it (``.onnx.data``) if they are too large for one file.

    Returns:
        Of the manifest: ``file``, ``load`` (the call that loads it), ``opset``, ``names`` and ``dynamic_size``.
    """
    import onnx
    import torch

    from .to_torch import _free_sizes

    target = folder / f'{network.name}.onnx'
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore', FutureWarning)  # of torch's own code
        exported = torch.onnx.export(
            program(network, options),
            dynamo=True,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            verbose=False,
        )
    size = sum(value.numel() * value.element_size() for value in network.state.values())
    exported.save(target, external_data=size > LARGEST)
    model = onnx.load(target, load_external_data=False)
    _name_axes(model)
    description = network.description()
    metadata = dict(subnet=str(network.subnet), source=network.stock.source, source_sha256=network.stock.source_sha256)
    metadata |= {key: ' '.join(map(str, description['input'][key])) for key in ('mean', 'std')}
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, target)
    return dict(
        file=target.name,
        load=f"onnxruntime.InferenceSession('{target.name}')",
        opset=next(entry.version for entry in model.opset_import if entry.domain in ('', 'ai.onnx')),
        names=dict(input=INPUT, outputs=list(OUTPUTS)),
        dynamic_size=_free_sizes(network) if options.dynamic_size else None,
    )


def _name_axes(model: Any) -> None:
    """Give the free sizes the names ``batch``, ``rows`` and ``columns`` instead of torch's symbols."""
    shape = model.graph.input[0].type.tensor_type.shape.dim
    names = {}
    for dim, name in zip((shape[0], shape[2], shape[3]), ('batch', 'rows', 'columns')):
        for symbol in re.findall(r'\bs\d+\b', dim.dim_param):
            names[symbol] = name
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r'\bs\d+\b', lambda match: names.get(match[0], match[0]), dim.dim_param)


def to_half(source: Path, target: Path) -> None:
    """Write a model with weights and arithmetic in float16; what goes in and comes out stays float32."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), target)


def to_int8(source: Path, target: Path, batches: Iterable[Any]) -> None:
    """Write a model whose matrix products and convolutions are computed in 8 bits.

    Args:
        source: The model in float32.
        target: File to write.
        batches: Images as the network takes them, float32 arrays ``(B, C, H, W)``, that the ranges of the activations
            are measured on.

    Raises:
        ExportError: If there is no image to calibrate on.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(batches)
            self.number = 0

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            self.number += batch is not None
            return None if batch is None else {INPUT: batch}

    reader = Reader()
    prepared = target.with_name(f'{target.name}.prepared')
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    try:
        quantize_static(
            prepared,
            target,
            reader,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=['Conv', 'MatMul', 'Gemm'],
            per_channel=True,
            # Both unsigned: signed weights overflow in 16 bits on processors without VNNI.
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QUInt8,
        )
    except ValueError as error:
        if reader.number:
            raise
        raise ExportError('int8: there is no image to calibrate on') from error
    finally:
        prepared.unlink(missing_ok=True)
