"""What runs a subnet where its cost is measured: torch or onnxruntime, on a CPU or a GPU.

A runtime never holds more than the weights of one subnet beside those of the supernet, however many take turns.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from mmpretrain.registry import MODELS
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from poa_mm.elastic import Subnet
from poa_mm.models.backbones.elastic_backbone import ElasticBackbone

RUNTIMES = ('torch', 'onnxruntime')
DEVICES = ('cpu', 'cuda')
# How the peak memory is found, by runtime and device: what it holds differs, so a reader must be told.
MEMORY = {
    ('torch', 'cpu'): 'weights and the largest sum of tensors at any time of one forward pass',
    ('torch', 'cuda'): "weights and the peak of torch's CUDA allocator in one forward pass",
    ('onnxruntime', 'cpu'): 'growth of the resident memory of a process that loads the network and runs it once',
    ('onnxruntime', 'cuda'): 'not measured',
}
# write_onnx(subnet, config, state, image_size, folder) writes the program of a stock network into an empty folder: one
# file *.onnx. It comes from deploy, which this package knows nothing of.
WriteOnnx = Callable[[Subnet, Mapping[str, Any], Mapping[str, Tensor], tuple[int, int], Path], object]


class Runtime(Protocol):
    """Runs subnets, one at a time."""

    def open(self, subnet: Subnet) -> AbstractContextManager[Callable[[Tensor], Callable[[], Any]]]:
        """Load a subnet.

        Yields:
            A function that takes images ``(B, C, H, W)`` on the CPU, and makes one that runs them and returns when the
            result is there.
        """

    def peak_memory(self, subnet: Subnet, images: Tensor) -> int | None:
        """Bytes as :data:`MEMORY` says, or None if they cannot be measured."""


def make_runtime(
    runtime: str, device: str, backbone: ElasticBackbone, *, folder: Path, write_onnx: WriteOnnx, threads: int
) -> Runtime:
    """The runtime of a name on a device.

    Args:
        runtime: One of ``RUNTIMES``.
        device: One of ``DEVICES``.
        backbone: The supernet, on the CPU.
        folder: Where onnxruntime keeps the networks while they are measured.
        write_onnx: Exports a network, for onnxruntime.
        threads: Of onnxruntime; those of torch are set for the whole process.
    """
    if runtime == 'torch':
        return TorchRuntime(backbone, device)
    return OnnxRuntime(backbone, device, folder, write_onnx, threads)


def check_runtime(runtime: str, device: str) -> None:
    """Check that a runtime is there and has the device.

    Raises:
        ValueError: If one of them is unknown or missing; says what to install.
    """
    for kind, name, known in (('runtime', runtime, RUNTIMES), ('device', device, DEVICES)):
        if name not in known:
            raise ValueError(f'{kind} {name!r} is not one of {", ".join(known)}')
    if device == 'cuda' and not torch.cuda.is_available():
        raise ValueError("device 'cuda' is not there: torch finds no GPU")
    if runtime != 'onnxruntime':
        return
    missing = [name for name in ('onnxruntime', 'onnx', 'onnxscript') if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"runtime 'onnxruntime' needs {', '.join(missing)}: pip install 'poa_mm[export]'")
    import onnxruntime

    if _provider(device) not in (found := onnxruntime.get_available_providers()):
        raise ValueError(f'onnxruntime has no {_provider(device)} for device {device!r}, only {", ".join(found)}')


class TorchRuntime:
    """Runs the stock network that a subnet is.

    Args:
        backbone: The supernet, on the CPU.
        device: ``'cpu'`` or ``'cuda'``.
    """

    def __init__(self, backbone: ElasticBackbone, device: str):
        self.backbone = backbone
        self.device = torch.device(device)
        self._networks: dict[Subnet, nn.Module] = {}  # without weights

    @contextmanager
    def open(self, subnet: Subnet) -> Iterator[Callable[[Tensor], Callable[[], Any]]]:
        config, state = self.backbone.extract(subnet)
        network = self._networks.get(subnet) or build(config)
        self._networks[subnet] = network.to(self.device)
        _set_weights(network, state)
        try:
            yield lambda images: self._runner(network, images.to(self.device))
        finally:
            _drop_weights(network)

    def _runner(self, network: nn.Module, images: Tensor) -> Callable[[], Any]:
        def run() -> Any:
            with torch.inference_mode():
                result = network(images)
            if self.device.type == 'cuda':
                torch.cuda.synchronize()
            return result

        return run

    def peak_memory(self, subnet: Subnet, images: Tensor) -> int | None:
        before = torch.cuda.memory_allocated() if self.device.type == 'cuda' else 0
        with self.open(subnet) as load:
            run = load(images)
            run()  # whatever is allocated once only
            if self.device.type == 'cuda':
                torch.cuda.reset_peak_memory_stats()
                run()
                return torch.cuda.max_memory_allocated() - before
            weights = sum(tensor.nbytes for tensor in self._networks[subnet].state_dict().values())
            return weights + _peak_of_tensors(run)


class OnnxRuntime:
    """Runs the ONNX program of a subnet, with the inputs on the device.

    Args:
        backbone: The supernet, on the CPU.
        device: ``'cpu'`` or ``'cuda'``.
        folder: Where the programs are kept, each written when it is first needed.
        write_onnx: Writes one into a folder.
        threads: Of one operator.
    """

    def __init__(self, backbone: ElasticBackbone, device: str, folder: Path, write_onnx: WriteOnnx, threads: int):
        self.backbone = backbone
        self.device = device
        self.folder = folder
        self.write_onnx = write_onnx
        self.threads = threads

    @contextmanager
    def open(self, subnet: Subnet) -> Iterator[Callable[[Tensor], Callable[[], Any]]]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3  # errors; warnings are of constants that it folds
        path = self._program(subnet)
        session = onnxruntime.InferenceSession(str(path), options, providers=[_provider(self.device)])
        yield lambda images: self._runner(session, images)

    def _runner(self, session: Any, images: Tensor) -> Callable[[], Any]:
        from onnxruntime import OrtValue

        binding = session.io_binding()
        binding.bind_ortvalue_input(
            session.get_inputs()[0].name, OrtValue.ortvalue_from_numpy(images.numpy(), self.device, 0)
        )
        for output in session.get_outputs():
            binding.bind_output(output.name, self.device)

        def run() -> Any:
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()
            return binding.get_outputs()

        return run

    def _program(self, subnet: Subnet) -> Path:
        """The file of a program, in a folder of its own as its weights may lie beside it."""
        folder = self.folder / str(subnet)
        if not folder.exists():
            part = self.folder / f'.{subnet}'  # of an export that was interrupted
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            self.write_onnx(subnet, *self.backbone.extract(subnet), self.backbone.img_size, part)
            part.rename(folder)
        return next(folder.glob('*.onnx'))

    def peak_memory(self, subnet: Subnet, images: Tensor) -> int | None:
        if self.device != 'cpu':
            return None
        arguments = dict(path=str(self._program(subnet)), shape=list(images.shape), threads=self.threads)
        command = [sys.executable, '-c', _CHILD, json.dumps(arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return int(done.stdout)


# A process of its own: onnxruntime tells nobody what it allocates, and what one network has left is not another's.
_CHILD = """
import json, resource, sys
import numpy as np
import onnxruntime

def memory(name):
    # Not ru_maxrss on Linux: a new process starts with that of the one that started it.
    try:
        with open('/proc/self/status') as file:
            return next(1024 * int(line.split()[1]) for line in file if line.startswith(name))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

arguments = json.loads(sys.argv[1])
images = np.zeros(arguments['shape'], np.float32)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = arguments['threads']
options.log_severity_level = 3
try:
    with open('/proc/self/clear_refs', 'w') as file:
        file.write('5')  # forgets the peak of the imports
except OSError:
    pass
before = memory('VmRSS')
session = onnxruntime.InferenceSession(arguments['path'], options, providers=['CPUExecutionProvider'])
session.run(None, {session.get_inputs()[0].name: images})
print(memory('VmHWM') - before)
"""


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def memory_of(device: str) -> int:
    """Bytes of memory that a device has in all."""
    if device == 'cuda':
        return torch.cuda.mem_get_info()[1]
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


def build(config: Mapping[str, Any]) -> nn.Module:
    """A stock network in evaluation mode."""
    network = MODELS.build(dict(config))
    network.eval()  # mmpretrain's returns None
    return network


def _set_weights(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    for name, param in network.named_parameters():
        param.data = state[name].to(param.device).contiguous()


def _drop_weights(network: nn.Module) -> None:
    for param in network.parameters():
        param.data = param.data.new_empty(0)


def _peak_of_tensors(run: Callable[[], Any]) -> int:
    """The most bytes that tensors made in a call take at any time, those inside of operators included."""
    os.environ.setdefault('KINETO_LOG_LEVEL', '5')  # the profiler says on stderr what it does, and that there is no GPU
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter('ignore')  # of cycles, which there are none of
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            run()
        trace = Path(folder, 'trace.json')
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding='utf-8'))['traceEvents']
    changes = [(e['ts'], e['args']['Ev Idx'], e['args']['Bytes']) for e in events if e.get('name') == '[memory]']
    total = peak = 0
    for *_, change in sorted(changes):
        total += change
        peak = max(peak, total)
    return peak


def _provider(device: str) -> str:
    return {'cpu': 'CPUExecutionProvider', 'cuda': 'CUDAExecutionProvider'}[device]
