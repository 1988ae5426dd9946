"""What would make the host wait for a GPU, seen on any device."""

from __future__ import annotations

import traceback

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Operators whose result, or its size, the host has to read.
OPERATORS = ('_local_scalar_dense', 'nonzero', 'masked_select', '_unique', 'unique', 'equal', 'is_nonzero', 'bincount')
# Functions that read a tensor, or make one of the host's numbers, which are not in pinned memory.
FUNCTIONS = {
    *(torch.tensor, torch.as_tensor, torch.from_numpy, torch.Tensor.new_tensor),
    *(torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu),
}


class Waiting(TorchDispatchMode):
    """Notes, in ``found``, each operator that would wait for the device, with the line of poa_mm it came from."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []
        self._functions = _Functions(self.found)

    def __enter__(self):
        self._functions.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._functions.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name.startswith(OPERATORS) or (name == 'repeat_interleave' and 'output_size' not in (kwargs or {})):
            note(self.found, name)
        if name in ('index', 'index_put', 'index_put_', '_index_put_impl_'):
            indices = [index for index in args[1] if index is not None]
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                note(self.found, f'{name} by a mask')
            if any(index.device != args[0].device for index in indices):
                note(self.found, f'{name} by numbers of the host')
        return func(*args, **(kwargs or {}))


class _Functions(TorchFunctionMode):
    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in FUNCTIONS:
            note(self.found, func.__name__)
        if func is torch.Tensor.__getitem__ and any(isinstance(i, list) for i in _each(args[1])):
            note(self.found, 'index by a list')
        return func(*args, **(kwargs or {}))


def _each(index):
    return index if isinstance(index, tuple) else (index,)


def note(found: list[str], what: str) -> None:
    lines = [f'{frame.filename.split("poa_mm/")[-1]}:{frame.lineno}' for frame in traceback.extract_stack()]
    found.append(f'{what} at {" < ".join(lines[-8:-2][::-1])}')
