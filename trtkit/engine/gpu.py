"""Running an engine on the GPU with PyCUDA: buffers, one stream, and a CUDA graph for every set of shapes.

A call that finds nothing new (same shapes, and for GPU tensors the same addresses) only replays a graph.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from trtkit.engine.bound import Bound, HostBound
from trtkit.engine.closing import close_at_exit
from trtkit.engine.cuda import NON_BLOCKING, check, cuda, current, driver
from trtkit.engine.device import gpu
from trtkit.engine.loaded import Context, LoadedEngine, Shapes
from trtkit.engine.overlap import Overlap
from trtkit.engine.session import Session
from trtkit.engine.tensors import TensorBound, as_tensors, check_tensors, on_gpu, run_apart
from trtkit.model import check_inputs

_replay = driver.cuGraphLaunch


class GpuSession(Session):
    """An engine opened on the GPU.

    NumPy inputs are copied to the GPU and the outputs back, through pinned memory. CUDA tensors of PyTorch are read
    where they lie, and the outputs are CUDA tensors that **the next call with the same inputs overwrites**
    (`.clone()` keeps one). Such a call returns when its work is queued, as PyTorch's own do, on a stream that waits for
    PyTorch's default stream and that it waits for; give another stream's handle as `run(..., stream=...)`. GPU arrays
    of other libraries (CuPy, JAX, Numba) are read where they lie, too, through DLPack; their outputs are PyTorch's
    tensors, which DLPack takes back: `cupy.from_dlpack(y)`.

    Args:
        plan: the serialised engine, or one that is loaded already and that others run, too.
        profile: which of its optimization profiles; by default each call takes the one that fits its shapes.
        cuda_graph: replay a CUDA graph from the second call of each set of shapes on.
        cache_dir: where TensorRT-RTX keeps the kernels it compiled for this GPU; by default below the user's cache
        folder.
        kept_shapes: so many sets of shapes (for tensors: of addresses) keep their buffers and graphs; the one used
        least recently goes first.

    A session computes one call after the other: use it from one thread, and from one stream at a time. Several threads
    share an engine through a `trtkit.engine.pool.Pool`.
    """

    def __init__(
        self,
        plan: bytes | LoadedEngine,
        name: str,
        *,
        profile: int | None = None,
        cuda_graph: bool = True,
        cache_dir: str | Path | None = None,
        kept_shapes: int = 16,
    ) -> None:
        self.name = name
        self.device = str(getattr(gpu(), "name", "cuda"))
        self.cuda_graph = cuda_graph
        self._profile, self._kept = profile, kept_shapes
        self._bound: OrderedDict[Any, Any] = OrderedDict()
        self._latest: Bound | None = None  # of the last call, so at the end of `_bound`
        self._contexts: dict[int, Context] = {}  # of each profile in use; each has its own scratch memory and graphs
        self._overlap: Overlap | None = None
        self._lone = not isinstance(plan, LoadedEngine)
        with current(), ExitStack() as undo:
            self.loaded = plan if isinstance(plan, LoadedEngine) else LoadedEngine(plan, name, cache_dir)
            undo.callback(self.close)  # should the rest fail
            # a stream that PyTorch's default stream waits for cannot be recorded while other threads use that one
            self.stream = cuda.Stream(0 if self._lone else NON_BLOCKING)
            self._handle: int = self.stream.handle
            self._stream = driver.CUstream(self._handle)  # the driver's type: converting an integer costs every call
            self.engine: Any = self.loaded.engine
            self.inputs, self.outputs = self.loaded.inputs, self.loaded.outputs
            self._names = tuple(i.name for i in self.inputs)
            self._context(profile or 0)
            undo.pop_all()
        close_at_exit(self)

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
            if any(map(on_gpu, inputs.values())):
                return self._run_dlpack(inputs, stream)
            return self._run_host(inputs)
        bound: Any = self._bound.get(key)
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
                check((status,))
        return bound.outputs

    def _run_host(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        arrays = check_inputs(self.inputs, inputs, self.name)
        self._check_open()
        with current():
            bound = self.host_bound(arrays)
            bound.upload(arrays, self.stream)
            bound.launch(self._handle)
            bound.download(self.stream)
            self.stream.synchronize()
            return bound.results()

    def host_bound(self, arrays: Mapping[str, np.ndarray], slot: int = 0) -> HostBound:
        """Buffers for arrays of these shapes; each `slot` has its own."""
        key = (slot, *(array.shape for array in arrays.values()))
        bound = self.recall(key)
        if bound is None:
            bound = self.remember(key, HostBound(self, {name: array.shape for name, array in arrays.items()}))
        return bound

    def _run_dlpack(self, inputs: Mapping[str, Any], stream: int | None) -> dict[str, Any]:
        tensors = as_tensors(inputs, self.name)
        check_tensors(self.inputs, tensors, self.name)
        return self.run(tensors, stream)

    def _bind_tensors(self, key: Any, tensors: Mapping[str, Any]) -> Any:
        self._check_open()
        check_tensors(self.inputs, tensors, self.name)
        with current():
            return self.remember(key, TensorBound(self, dict(tensors)))

    def run_apart(self, inputs: Mapping[str, Any] | Any) -> dict[str, Any]:
        """Like `run`, but the outputs are the caller's own and ready, for CUDA tensors as well."""
        if not isinstance(inputs, Mapping):
            inputs = {self._names[0]: inputs} if len(self._names) == 1 else {}
        if not any(map(on_gpu, inputs.values())):
            return self._run_host(inputs)
        self._check_open()
        with current():
            return run_apart(self, as_tensors(inputs, self.name))

    def run_many(self, batches: Iterable[Any], overlap: bool = True) -> Iterator[dict[str, np.ndarray]]:
        """Outputs of many batches of NumPy arrays, in order, see `Session.run_many`.

        While one batch is computed, the next is copied to the GPU and the outputs of the last one come back, on three
        streams. `overlap=False` does one thing after the other.
        """
        if not overlap:
            return super().run_many(batches)
        self._overlap = self._overlap or Overlap(self)
        return self._overlap.run(batches)

    # What it keeps

    @property
    def graphs(self) -> tuple[Any, ...]:
        """The CUDA graphs (`cuda.bindings.driver.CUgraphExec`) replayed by now, of the shapes used last at the end."""
        return tuple(bound.graph for bound in self._bound.values() if bound.graph is not None)

    @property
    def context(self) -> Any:
        """TensorRT's `IExecutionContext` of the profile that was asked for, or of the first one."""
        return self._context(self._profile or 0).trt

    def recall(self, key: Any) -> Any:
        """What was remembered under this key, now the last one used; None where it is not there any more."""
        bound = self._bound.get(key)
        if bound is not None:
            self._bound.move_to_end(key)
            self._latest = bound
        return bound

    def remember(self, key: Any, bound: Any) -> Any:
        self._bound[key] = self._latest = bound
        while len(self._bound) > self._kept:
            _, oldest = self._bound.popitem(last=False)
            self._wait()
            oldest.free()
        return bound

    def _wait(self) -> None:
        """Until nothing of this session is under way on the GPU."""
        if self._overlap:
            self._overlap.wait()
        self.stream.synchronize()

    def check_shapes(self, shapes: Shapes) -> None:
        self.loaded.profile_for(shapes, self._profile)

    def context_for(self, shapes: Shapes) -> Context:
        """The context of the profile for these shapes. Raises ModelError outside of all."""
        return self._context(self.loaded.profile_for(shapes, self._profile))

    def _context(self, profile: int) -> Context:
        self._check_open()
        if profile not in self._contexts:
            self._contexts[profile] = self.loaded.context(profile, self._handle)
        return self._contexts[profile]

    # The end

    def close(self) -> None:
        if self._closed:
            return
        super().close()
        with current(), ExitStack() as steps:  # the last one is done first, and all of them even if one fails
            steps.callback(self._let_go)
            for bound in self._bound.values():
                steps.callback(bound.free)
            if hasattr(self, "stream"):
                steps.callback(self._wait)

    def _let_go(self) -> None:
        """In this order: see `LoadedEngine.close`."""
        self._bound.clear()
        self._latest = None  # it points back here: memory would wait for the garbage collector
        if self._lone:
            self.loaded.save()
        self._contexts.clear()
        self.engine = self._overlap = None
        if self._lone:
            self.loaded.close()
        vars(self).pop("stream", None)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # whoever forgot to close it can do nothing about an error now
            self.close()
