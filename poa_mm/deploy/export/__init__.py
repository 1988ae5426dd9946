"""Subnets in the formats that the rest of the world loads: timm, transformers, ONNX, torch.export."""

from .network import ExportError
from .options import ExportOptions
from .run import FORMATS, export_subnets, possible_formats

__all__ = ['FORMATS', 'ExportError', 'ExportOptions', 'export_subnets', 'possible_formats']
