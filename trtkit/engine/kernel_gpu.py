"""A chain of engines and kernels on the GPU: one stream, one CUDA graph, tensors that never leave the memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from trtkit.engine.device import gpu
from trtkit.engine.gpu import GpuSession, cuda, driver
from trtkit.engine.kernel import Chain, Kernel
from trtkit.engine.session import Session
from trtkit.errors import EngineError, MissingError, ModelError
from trtkit.model import check_inputs

_KEPT = 8  # sets of shapes, with their buffers and graph; the oldest goes first


class _Bound(NamedTuple):
    """Buffers of one set of shapes, and the graph that works on them; None where recording failed."""

    tensors: dict[str, Any]
    graph: Any


class GpuChain(Session):
    """See `Chain.open`. Inputs are copied into the chain's own buffers, the GPU's own memory where they are CUDA
    tensors; the outputs of CUDA tensors are CUDA tensors that the next call overwrites.

    Raises:
        MissingError: PyTorch is not installed.
        EngineError: a kernel does not compile; with the compiler's words.
    """

    def __init__(self, chain: Chain) -> None:
        try:
            import torch  # noqa: F401
        except ImportError as error:
            raise MissingError(f"A chain on the GPU keeps its tensors with PyTorch: {error}.") from error
        self.device = str(getattr(gpu(), "name", "cuda"))
        self.name, self.inputs, self.outputs = chain.name, chain.inputs, chain.outputs
        self.stream = cuda.Stream()
        self._stages: list[tuple[Kernel, Any] | GpuSession] = []
        self._bound: dict[tuple[Any, ...], _Bound] = {}
        for stage in chain.stages:
            if isinstance(stage, Kernel):
                module = cuda.module_from_buffer(_compiled(stage))
                self._stages.append((stage, module.get_function(stage.name)))
            else:  # its own graph would be one of many
                self._stages.append(stage.open("cuda", cuda_graph=False))  # type: ignore[arg-type]

    def run(self, inputs: Mapping[str, Any] | Any) -> dict[str, Any]:
        self._check_open()
        if not isinstance(inputs, Mapping):
            inputs = {self.inputs[0].name: inputs}
        on_gpu = all(hasattr(value, "data_ptr") for value in inputs.values())
        given = dict(inputs) if on_gpu else check_inputs(self.inputs, inputs, self.name)
        missing = [info.name for info in self.inputs if info.name not in given]
        if missing:
            raise ModelError(f"{self.name!r} needs input {missing[0]!r}.")
        key = tuple((name, tuple(given[name].shape)) for name in sorted(given))
        bound = self._bound.get(key) or self._bind(key, given)
        for info in self.inputs:
            self._upload(bound.tensors[info.name], given[info.name], on_gpu)
        if bound.graph is None:
            self._launch(bound.tensors)
        else:
            _check(driver.cuGraphLaunch(bound.graph, self.stream.handle))
        outputs = {info.name: bound.tensors[info.name] for info in self.outputs}
        return outputs if on_gpu else self._download(outputs)

    # Memory

    def _upload(self, tensor: Any, given: Any, on_gpu: bool) -> None:
        if on_gpu:
            size = tensor.numel() * tensor.element_size()
            cuda.memcpy_dtod_async(tensor.data_ptr(), given.data_ptr(), size, self.stream)
        else:
            cuda.memcpy_htod_async(tensor.data_ptr(), _bytes(given), self.stream)

    def _download(self, outputs: dict[str, Any]) -> dict[str, np.ndarray]:
        arrays = {}
        for info in self.outputs:
            tensor = outputs[info.name]
            arrays[info.name] = np.empty(tuple(tensor.shape), info.dtype)
            cuda.memcpy_dtoh_async(_bytes(arrays[info.name]), tensor.data_ptr(), self.stream)
        self.stream.synchronize()
        return arrays

    def _bind(self, key: tuple[Any, ...], given: Mapping[str, Any]) -> _Bound:
        """Buffers for these shapes, one plain run, which binds all stages, and the same recorded as a graph."""
        while len(self._bound) >= _KEPT:
            self._free(self._bound.pop(next(iter(self._bound))))
        tensors = {info.name: _empty(tuple(given[info.name].shape), info.dtype) for info in self.inputs}
        self._launch(tensors)
        self.stream.synchronize()
        bound = self._bound[key] = _Bound(tensors, self._recorded(tensors))
        return bound

    # Running

    def _launch(self, tensors: dict[str, Any]) -> None:
        """Every stage in turn; the first time, what it gives is added to `tensors`."""
        for stage in self._stages:
            if isinstance(stage, GpuSession):
                names = [info.name for info in stage.inputs]
                tensors |= stage.run({name: tensors[name] for name in names}, stream=self.stream.handle)
            else:
                self._start(*stage, tensors)

    def _start(self, kernel: Kernel, function: Any, tensors: dict[str, Any]) -> None:
        given = [tensors[info.name] for info in kernel.inputs]
        shapes = [tuple(tensor.shape) for tensor in given]
        if kernel.output not in tensors:
            tensors[kernel.output] = _empty(tuple(kernel.shape(*shapes)), np.dtype(kernel.dtype))
        output = tensors[kernel.output]
        addresses = [np.intp(tensor.data_ptr()) for tensor in (*given, output)]
        integers = [np.int32(size) for size in kernel.integers(shapes)]
        blocks = -(-int(np.prod(output.shape)) // kernel.threads)
        function(*addresses, *integers, block=(kernel.threads, 1, 1), grid=(blocks, 1), stream=self.stream)

    def _recorded(self, tensors: dict[str, Any]) -> Any:
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _check(driver.cuStreamBeginCapture(self.stream.handle, mode))
        try:
            self._launch(tensors)
        finally:
            status, graph = driver.cuStreamEndCapture(self.stream.handle)
        if int(status) != 0:
            return None  # a stage talks to the host: run stage by stage
        found = _check(driver.cuGraphInstantiate(graph, 0))
        _check(driver.cuGraphDestroy(graph))
        return found

    @property
    def recorded(self) -> bool:
        """Whether every set of shapes so far is replayed as one CUDA graph."""
        return all(bound.graph is not None for bound in self._bound.values())

    def _free(self, bound: _Bound) -> None:
        self.stream.synchronize()
        if bound.graph is not None:
            _check(driver.cuGraphExecDestroy(bound.graph))

    def close(self) -> None:
        if self._closed:
            return
        for bound in self._bound.values():
            self._free(bound)
        self._bound.clear()
        for stage in self._stages:
            if isinstance(stage, GpuSession):
                stage.close()
        self._stages.clear()
        super().close()


def _compiled(kernel: Kernel) -> bytes:
    """The kernel for this GPU, compiled by NVRTC, which needs no CUDA toolkit."""
    from cuda.bindings import nvrtc

    card = gpu()
    capability = "".join(map(str, card.compute_capability)) if card else "80"
    _, program = nvrtc.nvrtcCreateProgram(kernel.source.encode(), f"{kernel.name}.cu".encode(), 0, [], [])
    options = [f"--gpu-architecture=sm_{capability}".encode()]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if int(status) != 0:
        _, size = nvrtc.nvrtcGetProgramLogSize(program)
        words = bytearray(size)
        nvrtc.nvrtcGetProgramLog(program, words)
        raise EngineError(f"Kernel {kernel.name!r} does not compile:\n{bytes(words).decode(errors='replace').strip()}")
    _, size = nvrtc.nvrtcGetCUBINSize(program)
    code = bytearray(size)
    nvrtc.nvrtcGetCUBIN(program, code)
    nvrtc.nvrtcDestroyProgram(program)
    return bytes(code)


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> Any:
    import torch

    return torch.empty(shape, dtype=getattr(torch, dtype.name), device="cuda")


def _bytes(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)


def _check(result: tuple[Any, ...]) -> Any:
    """The value of a CUDA driver call, or EngineError with the driver's name for what went wrong."""
    status, *values = result
    if int(status) != 0:
        raise EngineError(f"CUDA: {status.name}")
    return values[0] if values else None
