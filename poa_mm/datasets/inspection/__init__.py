"""What is in a set of images, before anything is trained on it."""

from .report import write_report
from .scan import inspect
from .summary import Summary

__all__ = ['Summary', 'inspect', 'write_report']
