"""A chain of engines and kernels on the GPU: one stream, one CUDA graph, tensors that never leave the memory."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np

from trtkit.engine.closing import close_at_exit
from trtkit.engine.cuda import as_bytes, check, cuda, current, driver
from trtkit.engine.device import gpu
from trtkit.engine.gpu import GpuSession
from trtkit.engine.kernel import Chain, Kernel
from trtkit.engine.session import Session
from trtkit.engine.tensors import check_tensors, on_gpu, torch_dtype
from trtkit.errors import EngineError
from trtkit.model import check_inputs

_KEPT = 8  # sets of shapes, with their buffers and graph; the oldest goes first


class _Bound(NamedTuple):
    """The tensors of one set of shapes or addresses, and the graph that works on them; None where there is none."""

    tensors: dict[str, Any]
    graph: Any


class GpuChain(Session):
    """See `Chain.open`. CUDA tensors are read where they lie, and the outputs are CUDA tensors that the next call with
    the same inputs overwrites; NumPy arrays are copied to the GPU and the outputs back.

    Raises:
        EngineError: a kernel does not compile; with the compiler's words.
    """

    def __init__(self, chain: Chain) -> None:
        self.device = str(getattr(gpu(), "name", "cuda"))
        self.name, self.inputs, self.outputs = chain.name, chain.inputs, chain.outputs
        self._stages: list[tuple[Kernel, Any] | GpuSession] = []
        self._bound: dict[tuple[Any, ...], _Bound] = {}
        with current(), ExitStack() as undo:
            undo.callback(self.close)  # should the rest fail
            self.stream = cuda.Stream()
            for stage in chain.stages:
                if isinstance(stage, Kernel):
                    module = cuda.module_from_buffer(_compiled(stage))
                    self._stages.append((stage, module.get_function(stage.name)))
                else:  # without graphs of their own: the chain has one for all
                    self._stages.append(stage.open("cuda", cuda_graph=False))  # type: ignore[arg-type]
            undo.pop_all()
        close_at_exit(self)

    def run(self, inputs: Mapping[str, Any] | Any) -> dict[str, Any]:
        self._check_open()
        if not isinstance(inputs, Mapping):
            inputs = {self.inputs[0].name: inputs}
        if any(map(on_gpu, inputs.values())):
            return self._run_tensors(dict(inputs))
        arrays = check_inputs(self.inputs, inputs, self.name)
        with current():
            key = tuple(array.shape for array in arrays.values())
            bound = self._bound.get(key)
            if bound is None:
                bound = self._bind(key, {name: _empty(array.shape, array.dtype) for name, array in arrays.items()})
            for name, array in arrays.items():
                cuda.memcpy_htod_async(bound.tensors[name].data_ptr(), as_bytes(array), self.stream)
            self._start(bound)
            return self._download(bound.tensors)

    def _run_tensors(self, tensors: dict[str, Any]) -> dict[str, Any]:
        key = tuple((name, tensor.data_ptr(), tuple(tensor.shape)) for name, tensor in tensors.items())
        bound = self._bound.get(key)
        with current():
            if bound is None:
                check_tensors(self.inputs, tensors, self.name)
                bound = self._bind(key, tensors)
            self._start(bound)
        return {info.name: bound.tensors[info.name] for info in self.outputs}

    def _download(self, tensors: dict[str, Any]) -> dict[str, np.ndarray]:
        arrays = {info.name: np.empty(tuple(tensors[info.name].shape), info.dtype) for info in self.outputs}
        for name, array in arrays.items():
            cuda.memcpy_dtoh_async(as_bytes(array), tensors[name].data_ptr(), self.stream)
        self.stream.synchronize()
        return arrays

    def _bind(self, key: tuple[Any, ...], given: Mapping[str, Any]) -> _Bound:
        """One plain run, which makes the tensors between the stages, and the same recorded as a graph."""
        while len(self._bound) >= _KEPT:
            self._free(self._bound.pop(next(iter(self._bound))))
        tensors = dict(given)
        self._launch(tensors)
        self.stream.synchronize()
        bound = self._bound[key] = _Bound(tensors, self._recorded(tensors))
        return bound

    def _start(self, bound: _Bound) -> None:
        if bound.graph is None:
            self._launch(bound.tensors)
        else:
            check(driver.cuGraphLaunch(bound.graph, self.stream.handle))

    def _launch(self, tensors: dict[str, Any]) -> None:
        """Every stage in turn; the first time, what it gives is added to `tensors`."""
        for stage in self._stages:
            if isinstance(stage, GpuSession):
                names = [info.name for info in stage.inputs]
                tensors |= stage.run({name: tensors[name] for name in names}, stream=self.stream.handle)
            else:
                self._start_kernel(*stage, tensors)

    def _start_kernel(self, kernel: Kernel, function: Any, tensors: dict[str, Any]) -> None:
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
        check(driver.cuStreamBeginCapture(self.stream.handle, mode))
        try:
            self._launch(tensors)
        finally:
            status, graph = driver.cuStreamEndCapture(self.stream.handle)
        if int(status) != 0:
            return None  # a stage talks to the host: run stage by stage
        found = check(driver.cuGraphInstantiate(graph, 0))
        check(driver.cuGraphDestroy(graph))
        return found

    @property
    def recorded(self) -> bool:
        """Whether every set of shapes so far is replayed as one CUDA graph."""
        return all(bound.graph is not None for bound in self._bound.values())

    def _free(self, bound: _Bound) -> None:
        self.stream.synchronize()
        if bound.graph is not None:
            check(driver.cuGraphExecDestroy(bound.graph))

    def close(self) -> None:
        if self._closed:
            return
        super().close()
        with current(), ExitStack() as steps:  # the last one is done first, and all of them even if one fails
            for stage in self._stages:
                if isinstance(stage, GpuSession):
                    steps.callback(stage.close)
            for bound in self._bound.values():
                steps.callback(self._free, bound)
        self._stages.clear()
        self._bound.clear()


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

    return torch.empty(tuple(shape), dtype=torch_dtype(np.dtype(dtype)), device="cuda")
