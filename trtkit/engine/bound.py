"""One set of shapes with its addresses: launched plainly the first time, as a CUDA graph afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from trtkit.engine.allocator import OutputAllocator
from trtkit.engine.cuda import as_bytes, check, cuda, device_memory, driver, pinned, stage
from trtkit.engine.loaded import Shapes
from trtkit.errors import EngineError
from trtkit.model import TensorInfo

if TYPE_CHECKING:
    from trtkit.engine.gpu import GpuSession


class Bound:
    """Shapes, the context that takes them, and where the tensors lie.

    Attributes:
        graph: the CUDA graph of one run, None before the second and where TensorRT cannot be recorded.
        growing: the outputs whose shape depends on the data, with the allocators of their memory.
    """

    outputs: dict[str, Any]

    def __init__(self, session: GpuSession, shapes: Shapes) -> None:
        self.session = session
        self.shapes = dict(shapes)
        self.addresses: dict[str, int] = {}
        self.graph: Any = None
        self.launches = 0
        self.context: Any = session.context_for(shapes)
        with session.loaded.lock:
            found = self.context.set_shapes(shapes)
        self.output_shapes = {name: shape for name, shape in found.items() if min(shape, default=0) >= 0}
        self.growing = {name: self._allocator() for name in found if name not in self.output_shapes}

    def _allocator(self) -> OutputAllocator:
        raise NotImplementedError

    def launch(self, stream: int) -> None:
        """Put one run on a stream. Raises EngineError when TensorRT or the driver says no."""
        loaded = self.session.loaded
        with loaded.turn(stream):
            if self.graph is not None:
                check(driver.cuGraphLaunch(self.graph, stream))
            elif self.launches and self.context.bound is self:
                self._enqueue(stream)
            else:
                with loaded.lock:
                    self._launch_anew(stream)

    def _launch_anew(self, stream: int) -> None:
        if self.context.bound is not self:
            self._bind()
        self._enqueue(stream)
        self.launches += 1
        if self.session.cuda_graph and self.launches == 1 and not self.growing:
            self._capture()

    def _bind(self) -> None:
        """Give the context these shapes and addresses."""
        self.context.set_shapes(self.shapes)
        for name, address in self.addresses.items():
            self.context.trt.set_tensor_address(name, address)
        for name, allocator in self.growing.items():
            self.context.trt.set_output_allocator(name, allocator)
        self.context.bound = self

    def _enqueue(self, stream: int) -> None:
        """One plain `execute_async_v3` of what is bound."""
        done = self.context.enqueue(stream)
        for allocator in self.growing.values():
            allocator.check()
        if not done:
            session = self.session
            raise EngineError(f"TensorRT failed while running {session.name!r}: {session.loaded.words()}")

    def _capture(self) -> None:
        """Record one run as a CUDA graph: from then on a call starts all kernels at once.

        An engine that must talk to the host between its kernels cannot be recorded and goes on being run plainly.
        TensorRT's own `is_stream_capturable` is of no help here: TensorRT-RTX 1.6 answers no where recording works.
        """
        stream = self.session.stream
        stream.synchronize()
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        check(driver.cuStreamBeginCapture(stream.handle, mode))
        recorded = self.context.enqueue(stream.handle)
        status, graph = driver.cuStreamEndCapture(stream.handle)
        if not recorded or int(status) != 0:
            self.session.cuda_graph = False
            return
        self.graph = check(driver.cuGraphInstantiate(graph, 0))
        check(driver.cuGraphDestroy(graph))

    def free(self) -> None:
        """Let go of graph, context and memory; the streams must have run dry."""
        if self.context.bound is self:
            self.context.bound = None
        self.context = None  # whoever still holds this must not keep the context alive
        graph, self.graph = self.graph, None
        if graph is not None:
            check(driver.cuGraphExecDestroy(graph))


class HostBound(Bound):
    """NumPy in, NumPy out: pinned memory on the host, buffers on the GPU, asynchronous copies between them."""

    def __init__(self, session: GpuSession, shapes: Shapes) -> None:
        super().__init__(session, shapes)
        self.pinned: dict[str, np.ndarray] = {}
        self.buffers: dict[str, Any] = {}
        self.dtypes = {info.name: info.dtype for info in session.outputs}
        self.pending: Any = None  # outputs that are still on their way out, see `overlap`
        try:
            for infos, sizes in ((session.inputs, self.shapes), (session.outputs, self.output_shapes)):
                for info in infos:
                    if info.name in sizes:
                        self._allocate(info, sizes[info.name])
        except BaseException:
            self.free()
            raise
        self.addresses = {name: int(buffer) for name, buffer in self.buffers.items()}

    def _allocate(self, info: TensorInfo, shape: tuple[int, ...]) -> None:
        self.pinned[info.name] = pinned(shape, info.dtype)
        self.buffers[info.name] = device_memory(max(1, self.pinned[info.name].nbytes))

    def _allocator(self) -> OutputAllocator:
        return OutputAllocator(device_memory, lambda buffer: buffer.free())

    def upload(self, arrays: Mapping[str, np.ndarray], stream: Any) -> None:
        """Copy the inputs to pinned memory now, and from there to the GPU on a stream."""
        for name, array in arrays.items():
            stage(self.pinned[name], array)
            cuda.memcpy_htod_async(self.buffers[name], as_bytes(self.pinned[name]), stream)

    def download(self, stream: Any) -> None:
        """Copy the outputs to pinned memory on a stream; `results` has them when that is done."""
        for name in self.output_shapes:
            cuda.memcpy_dtoh_async(as_bytes(self.pinned[name]), self.buffers[name], stream)
        for name, allocator in self.growing.items():
            self.pinned[name] = np.empty(allocator.shape, self.dtypes[name])
            if self.pinned[name].size:
                cuda.memcpy_dtoh_async(as_bytes(self.pinned[name]), allocator.memory, stream)

    def results(self) -> dict[str, np.ndarray]:
        """The outputs that were downloaded, as arrays of the caller's own."""
        return {name: self.pinned[name].copy() for name in self.dtypes}

    def free(self) -> None:
        super().free()
        for buffer in self.buffers.values():
            buffer.free()
        self.buffers.clear()
        for allocator in self.growing.values():
            allocator.release()
