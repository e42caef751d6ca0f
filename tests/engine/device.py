"""A GPU made of dictionaries: memory, streams, events, CUDA graphs and an engine that doubles its input.

What is put on a stream waits there until somebody synchronises, as late as a real GPU may be, and then happens in the
order that streams and events demand, otherwise in any (seeded) order. It computes what the addresses and shapes that a
context was given last said when it was enqueued, and a graph what they said when it was recorded. An engine computes
in two kernels, with its intermediate values in scratch memory. So a session that forgets to rebind, replays the wrong
graph, frees or overwrites too early, or lets two contexts run in one scratch memory gives wrong numbers here as on a
real GPU.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

LIMITS = [((1, 4), (2, 4), (32, 4)), ((33, 4), (40, 4), (64, 4))]  # of the two profiles
DEFAULT = 0  # the handle of the stream that the others wait for

Work = Callable[[], Any]


class Gpu:
    """Memory by address, queues of work, what is being recorded, and a diary of all that happened."""

    def __init__(self, seed: int = 0) -> None:
        self.memory: dict[int, np.ndarray] = {}
        self.addresses = itertools.count(1000, 1000)
        self.handles = itertools.count(7)  # of streams
        self.recording: dict[int, list[Work]] = {}  # by stream
        self.graphs: dict[int, list[Work]] = {}
        self.functions: dict[str, Callable[..., Any]] = {}  # kernels of one's own: they get addresses and sizes
        self.diary: list[str] = []
        self.capturable = True
        self.fails = False
        self.full = False
        self.contexts_left = 1000
        self.grows = False  # the output's shape depends on the data: as many rows as have a positive first number
        self.threads = threading.local()
        self.threads.depth = 1  # the primary context is current in the thread that imported PyCUDA
        self.queues: dict[int, deque[Work]] = {}
        self.marks: dict[int, int] = {}  # of each event: how often it was recorded, and how often that happened
        self.reached: dict[int, int] = {}
        self.random = random.Random(seed)
        self.lock = threading.RLock()

    def allocate(self, size: int) -> int:
        self.need_context()
        if self.full:
            raise MemoryError("cuMemAlloc failed: out of memory")
        address = next(self.addresses)
        self.memory[address] = np.zeros(size, np.uint8)
        return address

    def count(self, what: str) -> int:
        return self.diary.count(what)

    def need_context(self) -> None:
        if not getattr(self.threads, "depth", 0):
            raise RuntimeError("invalid device context - no currently active context?")

    # Streams

    def put(self, stream: Any, work: Work) -> None:
        """Onto a stream, or into the graph that is being recorded from it."""
        handle = stream if isinstance(stream, int) else stream.handle
        with self.lock:
            if handle in self.recording:
                self.recording[handle].append(work)
            else:
                self.queues.setdefault(handle, deque()).append(work)

    def step(self, handle: int) -> bool:
        """Do the first piece of work on a stream; False if it has to wait for an event."""
        if self.queues[handle][0]() is WAITS:
            return False
        self.queues[handle].popleft()
        return True

    def synchronize(self, done: Callable[[], bool]) -> None:
        """Let the streams go on, in an order that changes, until what somebody waits for has happened."""
        with self.lock:
            while not done():
                busy = [handle for handle, queue in self.queues.items() if queue]
                self.random.shuffle(busy)
                assert any(self.step(handle) for handle in busy), "the streams wait for each other, or for nothing"

    def drain(self, handle: int) -> None:
        self.synchronize(lambda: not self.queues.get(handle))

    def record(self, event: int, stream: Any) -> None:
        number = self.marks[event] = self.marks.get(event, 0) + 1
        self.put(stream, lambda: self.reached.__setitem__(event, number))

    def wait(self, stream: Any, event: int) -> None:
        number = self.marks.get(event, 0)
        self.put(stream, lambda: None if self.reached.get(event, 0) >= number else WAITS)


WAITS = object()


class Buffer:
    def __init__(self, gpu: Gpu, size: int) -> None:
        self.gpu, self.address = gpu, gpu.allocate(size)

    def __int__(self) -> int:
        return self.address

    def free(self) -> None:
        self.gpu.need_context()
        self.gpu.diary.append("free")
        del self.gpu.memory[self.address]


class Tensor:
    """A CUDA tensor of PyTorch, as far as a session looks at it."""

    def __init__(
        self, gpu: Gpu, array: np.ndarray, device: str = "cuda", contiguous: bool = True, index: int = 0
    ) -> None:
        import torch

        self.gpu, self.shape, self.dtype = gpu, array.shape, getattr(torch, array.dtype.name)
        self.device, self.contiguous = SimpleNamespace(type=device, index=index), contiguous
        self.address = gpu.allocate(array.nbytes)
        self.write(array)

    def write(self, array: np.ndarray) -> None:
        self.gpu.memory[self.address][:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)

    def numpy(self) -> np.ndarray:
        for handle in list(self.gpu.queues):
            self.gpu.drain(handle)
        dtype = np.dtype(str(self.dtype).removeprefix("torch."))
        size = int(np.prod(self.shape)) * dtype.itemsize
        return self.gpu.memory[self.address][:size].view(dtype).reshape(self.shape).copy()

    def data_ptr(self) -> int:
        return self.address

    def is_contiguous(self) -> bool:
        return self.contiguous

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2 if self.device.type == "cuda" else 1, self.device.index)

    # What a growing output is made with: other views of the same memory

    def _view(self, shape: tuple[int, ...], dtype: Any) -> Tensor:
        view = object.__new__(Tensor)
        vars(view).update(vars(self), shape=shape, dtype=dtype)
        return view

    def __getitem__(self, part: slice) -> Tensor:
        return self._view((part.stop,), self.dtype)

    def view(self, dtype: Any) -> Tensor:
        return self._view((self.shape[0] // dtype.itemsize,), dtype)

    def reshape(self, shape: tuple[int, ...]) -> Tensor:
        return self._view(shape, self.dtype)

    # What `run_apart` does with them, on PyTorch's current stream

    def copy_(self, other: Tensor, non_blocking: bool = False) -> None:
        self.gpu.put(current_stream(self.gpu), lambda: _copy(self.gpu, self.address, other.address))

    def clone(self) -> Tensor:
        made = Tensor(self.gpu, np.zeros(self.shape, str(self.dtype).removeprefix("torch.")))
        made.copy_(self)
        return made

    def record_stream(self, stream: Any) -> None:
        pass


def _copy(gpu: Gpu, to: int, source: int) -> None:
    size = min(gpu.memory[to].size, gpu.memory[source].size)
    gpu.memory[to][:size] = gpu.memory[source][:size]


class Stream:
    """`pycuda.driver.Stream`, and `torch.cuda.ExternalStream` of one."""

    def __init__(self, gpu: Gpu, handle: int | None = None) -> None:
        if handle is None:
            gpu.need_context()
        self.gpu, self.handle = gpu, next(gpu.handles) if handle is None else handle

    def synchronize(self) -> None:
        self.gpu.need_context()
        self.gpu.diary.append("synchronize")
        self.gpu.drain(self.handle)

    def wait_for_event(self, event: Event) -> None:
        self.gpu.wait(self, event.number)

    def wait_stream(self, other: Stream) -> None:
        event = Event(self.gpu)
        event.record(other)
        self.wait_for_event(event)

    def __enter__(self) -> Stream:  # torch.cuda.stream(...)
        self.gpu.threads.streams = [*getattr(self.gpu.threads, "streams", []), self]
        return self

    def __exit__(self, *_: Any) -> None:
        self.gpu.threads.streams.pop()


def current_stream(gpu: Gpu) -> Stream:
    return [Stream(gpu, DEFAULT), *getattr(gpu.threads, "streams", [])][-1]


class Event:
    def __init__(self, gpu: Gpu) -> None:
        gpu.need_context()
        self.gpu, self.number = gpu, next(gpu.addresses)

    def record(self, stream: Any) -> None:
        self.gpu.record(self.number, stream)

    def synchronize(self) -> None:
        wanted = self.gpu.marks[self.number]
        self.gpu.synchronize(lambda: self.gpu.reached.get(self.number, 0) >= wanted)


class PrimaryContext:
    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu

    def push(self) -> None:
        self.gpu.threads.depth = getattr(self.gpu.threads, "depth", 0) + 1


def pycuda(gpu: Gpu) -> SimpleNamespace:
    """`pycuda.driver`."""

    def upload(buffer: Buffer, array: np.ndarray, stream: Any) -> None:
        gpu.need_context()
        gpu.put(stream, lambda: gpu.memory[int(buffer)].__setitem__(slice(array.size), array))

    def download(array: np.ndarray, buffer: Buffer, stream: Any) -> None:
        gpu.need_context()
        gpu.put(stream, lambda: array.__setitem__(slice(None), gpu.memory[int(buffer)][: array.size]))

    def start(name: str, *arguments: Any, block: Any, grid: Any, stream: Any) -> None:
        gpu.need_context()
        gpu.diary.append(f"start {name} {grid[0]}x{block[0]}")
        gpu.put(stream, lambda: gpu.functions[name](*map(int, arguments)))

    def pop() -> None:
        gpu.need_context()
        gpu.threads.depth -= 1

    def pinned(size: int, dtype: Any) -> np.ndarray:
        gpu.need_context()
        return np.zeros(size, dtype)

    depth = lambda: getattr(gpu.threads, "depth", 0) or None  # noqa: E731
    return SimpleNamespace(
        Stream=lambda flags=0: Stream(gpu),
        Event=lambda flags=0: Event(gpu),
        Context=SimpleNamespace(get_current=depth, pop=pop),
        event_flags=SimpleNamespace(DISABLE_TIMING=2),
        pagelocked_empty=pinned,
        mem_alloc=lambda size: Buffer(gpu, size),
        mem_get_info=lambda: (0, 80 << 30),
        MemoryError=MemoryError,
        memcpy_htod_async=upload,
        memcpy_dtoh_async=download,
        module_from_buffer=lambda code: SimpleNamespace(get_function=lambda name: partial(start, name)),
    )


class Status(int):
    name = "CUDA_ERROR_INVALID_VALUE"


def driver(gpu: Gpu) -> SimpleNamespace:
    """`cuda.bindings.driver`."""

    def begin(stream: int, mode: Any) -> tuple[Status]:
        assert not gpu.queues.get(stream), "records a stream that is not idle"
        gpu.recording[stream] = []
        return (Status(0),)

    def end(stream: int) -> tuple[Status, Any]:
        recorded = gpu.recording.pop(stream)
        gpu.diary.append("capture")
        return (Status(0), recorded) if gpu.capturable else (Status(900), None)

    def instantiate(graph: Any, flags: int) -> tuple[Status, int]:
        handle = next(gpu.addresses)
        gpu.graphs[handle] = graph
        return Status(0), handle

    def launch(graph: int, stream: int) -> tuple[Status]:
        if graph not in gpu.graphs:
            return (Status(1),)
        gpu.diary.append("replay")
        for work in gpu.graphs[graph]:
            gpu.put(stream, work)
        return (Status(0),)

    def destroy(graph: int) -> tuple[Status]:
        gpu.diary.append("destroy graph")
        return (Status(0 if gpu.graphs.pop(graph, None) is not None else 1),)

    def wait(stream: int, event: int, flags: int) -> tuple[Status]:
        gpu.wait(stream, event)
        return (Status(0),)

    def record(event: int, stream: int) -> tuple[Status]:
        gpu.record(event, stream)
        return (Status(0),)

    return SimpleNamespace(
        CUstream=int,
        CUstreamCaptureMode=SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1),
        CUevent_flags=SimpleNamespace(CU_EVENT_DISABLE_TIMING=SimpleNamespace(value=2)),
        cuStreamBeginCapture=begin,
        cuStreamEndCapture=end,
        cuStreamWaitEvent=wait,
        cuEventCreate=lambda flags: (Status(0), next(gpu.addresses)),
        cuEventRecord=record,
        cuEventDestroy=lambda event: (Status(0),),
        cuGraphInstantiate=instantiate,
        cuGraphDestroy=lambda graph: (Status(0),),
        cuGraphLaunch=launch,
        cuGraphExecDestroy=destroy,
    )


class Mortal:
    """Writes its end into the diary."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu

    def __del__(self) -> None:
        self.gpu.diary.append(f"end of {type(self).__name__}")


class Context(Mortal):
    def __init__(self, gpu: Gpu, own_memory: bool) -> None:
        super().__init__(gpu)
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}
        self.allocator: Any = None
        self.profile = 0
        self.scratch = gpu.allocate(SCRATCH) if own_memory else None
        self.own_memory = own_memory
        self.inside = threading.Lock()

    def __del__(self) -> None:
        if self.own_memory:
            self.gpu.memory.pop(self.scratch, None)
        super().__del__()

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.gpu.diary.append(f"profile {profile}")
        self.profile = profile
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= SCRATCH
        self.scratch = address

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = LIMITS[self.profile]
        self.shape = shape
        return least[0] <= shape[0] <= most[0]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, 4) if self.gpu.grows else self.shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.gpu.diary.append(f"bind {name}")
        self.addresses[name] = address
        return True

    def set_output_allocator(self, name: str, allocator: Any) -> bool:
        self.allocator = allocator
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert self.inside.acquire(blocking=False), "two threads in one context"
        try:
            return self._execute(stream)
        finally:
            self.inside.release()

    def _execute(self, stream: int) -> bool:
        assert self.scratch is not None, "runs without scratch memory"
        gpu, size, x, scratch = self.gpu, int(np.prod(self.shape)) * 4, self.addresses["x"], self.scratch
        if stream not in gpu.recording:
            gpu.diary.append(f"execute on {stream}")
        if gpu.grows:
            return self._grow(stream, size)
        y = self.addresses["y"]

        def first() -> None:
            assert size <= min(gpu.memory[x].size, gpu.memory[y].size), "runs over the end of a buffer"
            gpu.memory[scratch][:size] = gpu.memory[x][:size]

        def second() -> None:
            gpu.memory[y][:size] = (2 * gpu.memory[scratch][:size].view(np.float32)).view(np.uint8)

        gpu.put(stream, first)
        gpu.put(stream, second)
        return not gpu.fails

    def _grow(self, stream: int, size: int) -> bool:
        """It needs the data to know the shape, so it waits for its stream, and cannot be recorded."""
        gpu = self.gpu
        if stream in gpu.recording:
            return False
        gpu.drain(stream)
        x = gpu.memory[self.addresses["x"]][:size].view(np.float32).reshape(self.shape)
        rows = x[x[:, 0] > 0]
        address = self.allocator.reallocate_output_async("y", 0, rows.nbytes, 256, stream)
        if not address:
            return False
        self.allocator.notify_shape("y", rows.shape)
        values = (2 * rows).reshape(-1).view(np.uint8)
        gpu.put(stream, lambda: gpu.memory[address].__setitem__(slice(values.size), values))
        return not gpu.fails


SCRATCH = 64 * 4 * 4


class Cache(Mortal):
    def deserialize(self, data: bytes) -> bool:
        self.gpu.diary.append(f"cache of {len(data)} bytes")
        return True

    def serialize(self) -> bytes:
        return b"compiled kernels"


class Config:
    """A runtime configuration; it holds nothing else of the engine."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.strategy = gpu, "static"

    def create_runtime_cache(self) -> Cache:
        return Cache(self.gpu)

    def set_runtime_cache(self, cache: Cache) -> None:
        self.gpu.diary.append("cache set")

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy


class Engine(Mortal):
    num_io_tensors = 2
    num_optimization_profiles = len(LIMITS)
    device_memory_size_v2 = SCRATCH

    def get_tensor_name(self, index: int) -> str:
        return "xy"[index]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name == "x" else "output"

    def get_tensor_location(self, name: str) -> str:
        return "device"

    def get_tensor_shape(self, name: str) -> tuple[int, int]:
        return (-1, 4)

    def get_tensor_dtype(self, name: str) -> str:
        return "float32"

    def get_tensor_profile_shape(self, name: str, profile: int) -> Any:
        return LIMITS[profile]

    def create_execution_context(self, *config: Config) -> Context | None:
        self.gpu.diary.append(f"context with {len(config)} config")
        self.gpu.contexts_left -= 1
        own_memory = not config or config[0].strategy == "static"
        return Context(self.gpu, own_memory) if self.gpu.contexts_left >= 0 else None

    def create_execution_context_without_device_memory(self) -> Context:
        return Context(self.gpu, own_memory=False)

    def create_runtime_config(self) -> Config:
        return Config(self.gpu)


class Runtime(Mortal):
    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        return None if plan == b"bad" else Engine(self.gpu)


class Allocator:
    """`IOutputAllocator`."""


def tensorrt(gpu: Gpu) -> SimpleNamespace:
    """The part of TensorRT's API that runs engines."""
    return SimpleNamespace(
        Runtime=lambda log: Runtime(gpu),
        IOutputAllocator=Allocator,
        TensorIOMode=SimpleNamespace(INPUT="input", OUTPUT="output"),
        TensorLocation=SimpleNamespace(DEVICE="device", HOST="host"),
        ExecutionContextAllocationStrategy=SimpleNamespace(STATIC="static", USER_MANAGED="user managed"),
        DataType=SimpleNamespace(BF16="bfloat16", FLOAT="float32"),
        nptype=np.dtype,
    )
