"""Running an engine on the GPU with PyCUDA: buffers, one stream, and a CUDA graph for every set of shapes.

A call that finds nothing new (same shapes, and for GPU tensors the same addresses) only replays a graph.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trtkit.engine.cache import RuntimeCache
from trtkit.engine.device import gpu
from trtkit.engine.session import Session
from trtkit.engine.trt import trt
from trtkit.errors import EngineError, MissingError, ModelError, extra
from trtkit.model import TensorInfo, check_fit, check_inputs

try:
    import pycuda.autoprimaryctx  # noqa: F401  (shares the context PyTorch uses; autoinit would make a second one)
    import pycuda.driver as cuda
    from cuda.bindings import driver
except ImportError as error:
    raise MissingError(
        f"Running an engine on the GPU needs PyCUDA and cuda-bindings ({error}): {extra('gpu')}. "
        "open('cpu') runs its graph without them."
    ) from error

if TYPE_CHECKING:
    import torch

_replay = driver.cuGraphLaunch
_KEPT = 16  # bound sets of shapes and addresses, with their buffers and graphs; the least recently used goes first


class GpuSession(Session):
    """An engine opened on the GPU.

    NumPy inputs are copied to the GPU and the outputs back, through pinned memory. CUDA tensors of PyTorch are read
    where they lie, and the outputs are CUDA tensors that **the next call with the same inputs overwrites**
    (`.clone()` keeps one). Such a call returns when its work is queued, as PyTorch's own do, on a stream that waits for
    PyTorch's default stream and that it waits for; give another stream's handle as `run(..., stream=...)`.

    Args:
        plan: the serialised engine.
        profile: which of its optimization profiles.
        cuda_graph: replay a CUDA graph from the second call of each set of shapes on.
        cache_dir: where TensorRT-RTX keeps the kernels it compiled for this GPU; by default below the user's cache
        folder.

    A session is one context with one scratch memory: use it from one thread, and from one stream at a time.
    """

    def __init__(
        self, plan: bytes, name: str, *, profile: int = 0, cuda_graph: bool = True, cache_dir: str | Path | None = None
    ) -> None:
        from trtkit.engine.child import log

        self._log = log()
        self.name = name
        self.device = str(getattr(gpu(), "name", "cuda"))
        self.stream = cuda.Stream()
        self._handle: int = self.stream.handle
        self._stream = driver.CUstream(self._handle)  # the driver's type: converting an integer costs every call
        self.cuda_graph = cuda_graph
        self._runtime = trt.Runtime(self._log)
        self.engine = self._runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            raise EngineError(f"TensorRT cannot open the engine of {name!r}: {self._words()}")
        self._cache = RuntimeCache.open(self.engine, plan, cache_dir)
        config = (self._cache.config,) if self._cache else ()
        self.context = self.engine.create_execution_context(*config)
        if self.context is None:
            raise EngineError(f"TensorRT cannot make an execution context for {name!r}: {self._words()}")
        if profile:
            self.context.set_optimization_profile_async(profile, self.stream.handle)
        tensors = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        is_input = {t: self.engine.get_tensor_mode(t) == trt.TensorIOMode.INPUT for t in tensors}
        self.inputs = tuple(self._info(t) for t in tensors if is_input[t])
        self.outputs = tuple(self._info(t) for t in tensors if not is_input[t])
        self._limits = {i.name: self.engine.get_tensor_profile_shape(i.name, profile) for i in self.inputs}
        self._names = tuple(i.name for i in self.inputs)
        self._bound: OrderedDict[Any, _Bound] = OrderedDict()
        self._latest: _Bound | None = None  # of the last call, so at the end of `_bound`
        self._current: _Bound | None = None  # whose shapes and addresses the context holds now

    def _info(self, name: str) -> TensorInfo:
        shape = tuple(d if d >= 0 else f"{name}_dim{i}" for i, d in enumerate(self.engine.get_tensor_shape(name)))
        return TensorInfo(name, shape, _numpy_dtype(self.engine.get_tensor_dtype(name)))

    def _words(self) -> str:
        return "; ".join(self._log.errors[-3:]) or "it gave no reason"

    # Running

    def run(self, inputs: Mapping[str, Any] | Any, stream: int | None = None) -> dict[str, Any]:
        """Compute the outputs: NumPy arrays from NumPy arrays, CUDA tensors from CUDA tensors. See `Session.run`."""
        # From here to the launch the GPU waits, and after a wait Python runs cold: every name looked up counts.
        if type(inputs) is not dict and not isinstance(inputs, Mapping):
            inputs = {self._names[0]: inputs} if len(self._names) == 1 else {}
        try:
            key = tuple(
                [(t.data_ptr(), t.shape, t.dtype, t.is_contiguous()) for t in map(inputs.__getitem__, self._names)]
            )
        except (KeyError, AttributeError):  # a name is missing, or these are no tensors
            return self._run_host(inputs)
        bound = self._bound.get(key)
        if bound is None:
            bound = self._bind_tensors(key, inputs)
        if bound is not self._latest:
            self._bound.move_to_end(key)
            self._latest = bound
        if bound.graph is None:
            bound.launch(self._handle if stream is None else stream)
        else:
            (status,) = _replay(bound.graph, self._stream if stream is None else stream)
            if status:
                _check((status,))
        return bound.outputs

    def _run_host(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        arrays = check_inputs(self.inputs, inputs, self.name)
        self._check_open()
        key = tuple(array.shape for array in arrays.values())
        bound: Any = self._bound.get(key)
        if bound is None:
            bound = self._remember(key, HostBound(self, {name: array.shape for name, array in arrays.items()}))
        self._bound.move_to_end(key)
        self._latest = bound
        bound.upload(arrays)
        bound.launch(self._handle)
        return bound.download()

    def _bind_tensors(self, key: Any, tensors: Mapping[str, torch.Tensor]) -> _Bound:
        self._check_open()
        described = {name: (tuple(t.shape), _dtype_of_torch(t.dtype)) for name, t in tensors.items()}
        check_fit(self.inputs, described, self.name)
        for info in self.inputs:
            tensor = tensors[info.name]
            if tensor.device.type == "cuda" and tensor.device.index not in (None, 0):
                raise ModelError(f"Input {info}: got a tensor on {tensor.device}; the engine runs on cuda:0.")
            if tensor.device.type != "cuda" or not tensor.is_contiguous():
                raise ModelError(
                    f"Input {info}: got a {'strided' if tensor.device.type == 'cuda' else tensor.device.type} "
                    "tensor. Give a contiguous CUDA tensor (.cuda().contiguous()), or NumPy arrays."
                )
        return self._remember(key, TensorBound(self, dict(tensors)))

    @property
    def graphs(self) -> tuple[Any, ...]:
        """The CUDA graphs (`cuda.bindings.driver.CUgraphExec`) replayed by now, of the shapes used last at the end."""
        return tuple(bound.graph for bound in self._bound.values() if bound.graph is not None)

    def _remember(self, key: Any, bound: Any) -> Any:
        self._bound[key] = bound
        while len(self._bound) > _KEPT:
            _, oldest = self._bound.popitem(last=False)
            self.stream.synchronize()
            oldest.free()
        return bound

    def set_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Tell the context the inputs' shapes; returns those of the outputs. Raises ModelError outside the profile."""
        self._current = None
        for name, shape in shapes.items():
            least, _, most = self._limits[name]
            if not all(a <= d <= b for a, d, b in zip(least, shape, most, strict=True)):
                raise ModelError(
                    f"Input {name!r} of {self.name!r}: the shape {tuple(shape)} is outside the engine's profile, "
                    f"{tuple(least)} to {tuple(most)}. Build with `shapes` that include it."
                )
            if not self.context.set_input_shape(name, tuple(shape)):
                raise EngineError(f"TensorRT refuses the shape {tuple(shape)} for {name!r}: {self._words()}")
        found = {info.name: tuple(self.context.get_tensor_shape(info.name)) for info in self.outputs}
        for name, shape in found.items():
            if any(d < 0 for d in shape):
                raise EngineError(
                    f"Output {name!r} of {self.name!r} has a shape that depends on the data, {shape}. Run this "
                    "engine with open('cpu')."
                )
        return found

    def bind(self, bound: _Bound) -> None:
        """Give the context the shapes and addresses of one bound set."""
        self.set_shapes(bound.shapes)
        for name, address in bound.addresses.items():
            self.context.set_tensor_address(name, address)
        self._current = bound

    def enqueue(self, stream: int) -> None:
        """One plain `execute_async_v3` of what is bound. Raises EngineError when TensorRT says no."""
        if not self.context.execute_async_v3(stream):
            raise EngineError(f"TensorRT failed while running {self.name!r}: {self._words()}")

    def close(self) -> None:
        if self._closed:
            return
        self.stream.synchronize()
        for bound in self._bound.values():
            bound.free()
        self._bound.clear()
        self._current = self._latest = None  # they point back here: memory would wait for the garbage collector
        if self._cache:
            self._cache.save()
        # In this order: TensorRT keeps bare pointers, and a context whose runtime cache was freed before it computes
        # wrong numbers or crashes the process.
        del self.context, self.engine
        self._cache = None
        del self._runtime
        del self.stream
        super().close()


class _Bound:
    """One set of shapes with its addresses: launched plainly the first time, as a CUDA graph afterwards."""

    outputs: dict[str, Any]

    def __init__(self, session: GpuSession, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.session = session
        self.shapes = dict(shapes)
        self.output_shapes = session.set_shapes(shapes)
        self.addresses: dict[str, int] = {}
        self.graph: Any = None
        self.launches = 0

    def launch(self, stream: int) -> None:
        if self.graph is not None:
            _check(driver.cuGraphLaunch(self.graph, stream))
            return
        if self.session._current is not self:
            self.session.bind(self)
        self.session.enqueue(stream)
        self.launches += 1
        if self.session.cuda_graph and self.launches == 1:
            self.capture()

    def capture(self) -> None:
        """Record one run as a CUDA graph: from then on a call starts all kernels at once.

        An engine that must talk to the host between its kernels cannot be recorded and goes on being run plainly.
        TensorRT's own `is_stream_capturable` is of no help here: TensorRT-RTX 1.6 answers no where recording works.
        """
        stream = self.session.stream
        stream.synchronize()
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _check(driver.cuStreamBeginCapture(stream.handle, mode))
        recorded = self.session.context.execute_async_v3(stream.handle)
        status, graph = driver.cuStreamEndCapture(stream.handle)
        if not recorded or int(status) != 0:
            self.session.cuda_graph = False
            return
        self.graph = _check(driver.cuGraphInstantiate(graph, 0))
        _check(driver.cuGraphDestroy(graph))

    def free(self) -> None:
        if self.graph is not None:
            _check(driver.cuGraphExecDestroy(self.graph))
            self.graph = None


class HostBound(_Bound):
    """NumPy in, NumPy out: pinned memory on the host, buffers on the GPU, asynchronous copies between them."""

    def __init__(self, session: GpuSession, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(session, shapes)
        self.pinned: dict[str, np.ndarray] = {}
        self.buffers: dict[str, Any] = {}
        for infos, sizes in ((session.inputs, self.shapes), (session.outputs, self.output_shapes)):
            for info in infos:
                self._allocate(info, sizes[info.name])
        self.addresses = {name: int(buffer) for name, buffer in self.buffers.items()}

    def _allocate(self, info: TensorInfo, shape: tuple[int, ...]) -> None:
        # pinned as bytes and then viewed: PyCUDA does not know bfloat16
        size = max(1, int(np.prod(shape)) * info.dtype.itemsize)
        raw = cuda.pagelocked_empty(size, np.uint8)
        self.pinned[info.name] = raw.view(info.dtype).reshape(shape)
        self.buffers[info.name] = cuda.mem_alloc(size)

    def upload(self, arrays: Mapping[str, np.ndarray]) -> None:
        for name, array in arrays.items():
            np.copyto(self.pinned[name], array)
            cuda.memcpy_htod_async(self.buffers[name], _bytes(self.pinned[name]), self.session.stream)

    def download(self) -> dict[str, np.ndarray]:
        for name in self.output_shapes:
            cuda.memcpy_dtoh_async(_bytes(self.pinned[name]), self.buffers[name], self.session.stream)
        self.session.stream.synchronize()
        return {name: self.pinned[name].copy() for name in self.output_shapes}

    def free(self) -> None:
        super().free()
        for buffer in self.buffers.values():
            buffer.free()
        self.buffers.clear()


class TensorBound(_Bound):
    """CUDA tensors in, CUDA tensors out, nothing copied."""

    def __init__(self, session: GpuSession, tensors: dict[str, torch.Tensor]) -> None:
        import torch

        super().__init__(session, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
        device = next(iter(tensors.values())).device
        self.outputs = {
            info.name: torch.empty(self.output_shapes[info.name], dtype=_torch_dtype(info.dtype), device=device)
            for info in session.outputs
        }
        self.addresses = {name: tensor.data_ptr() for name, tensor in {**tensors, **self.outputs}.items()}


def _check(result: tuple[Any, ...]) -> Any:
    """The value of a CUDA driver call, or EngineError with the driver's name for what went wrong."""
    status, *values = result
    if int(status) != 0:
        raise EngineError(f"CUDA: {status.name}")
    return values[0] if values else None


def _bytes(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)


def _numpy_dtype(dtype: trt.DataType) -> np.dtype:
    if dtype == trt.DataType.BF16:
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(trt.nptype(dtype))


def _torch_dtype(dtype: np.dtype) -> torch.dtype:
    import torch

    found: torch.dtype = getattr(torch, dtype.name)  # float16, bfloat16, int64, bool: both name them alike
    return found


def _dtype_of_torch(dtype: torch.dtype) -> np.dtype:
    name = str(dtype).removeprefix("torch.")
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)
