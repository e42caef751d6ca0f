"""A GPU made of dictionaries: memory, streams, CUDA graphs and an engine that doubles its input.

It computes what the addresses and shapes that it was given last say, and a graph what they said when it was recorded.
So a session that forgets to rebind, replays the wrong graph or frees too early gives wrong numbers here as on a real
GPU.
"""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np

LIMITS = [((1, 4), (2, 4), (32, 4)), ((33, 4), (40, 4), (64, 4))]  # of the two profiles


class Gpu:
    """Memory by address, what is being recorded, and a diary of all that happened."""

    def __init__(self) -> None:
        self.memory: dict[int, np.ndarray] = {}
        self.addresses = itertools.count(1000, 1000)
        self.recording: list[Any] | None = None
        self.graphs: dict[int, list[Any]] = {}
        self.diary: list[str] = []
        self.capturable = True
        self.fails = False
        self.full = False

    def allocate(self, size: int) -> int:
        if self.full:
            raise MemoryError("cuMemAlloc failed: out of memory")
        address = next(self.addresses)
        self.memory[address] = np.zeros(size, np.uint8)
        return address

    def count(self, what: str) -> int:
        return self.diary.count(what)


class Buffer:
    def __init__(self, gpu: Gpu, size: int) -> None:
        self.gpu, self.address = gpu, gpu.allocate(size)

    def __int__(self) -> int:
        return self.address

    def free(self) -> None:
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
        return self.gpu.memory[self.address].view(np.float32).reshape(self.shape).copy()

    def data_ptr(self) -> int:
        return self.address

    def is_contiguous(self) -> bool:
        return self.contiguous


def pycuda(gpu: Gpu) -> SimpleNamespace:
    """`pycuda.driver`."""

    def upload(buffer: Buffer, array: np.ndarray, stream: Any) -> None:
        gpu.memory[int(buffer)][: array.size] = array

    def download(array: np.ndarray, buffer: Buffer, stream: Any) -> None:
        array[:] = gpu.memory[int(buffer)][: array.size]

    return SimpleNamespace(
        Stream=lambda: SimpleNamespace(handle=7, synchronize=lambda: gpu.diary.append("synchronize")),
        pagelocked_empty=np.zeros,
        mem_alloc=lambda size: Buffer(gpu, size),
        memcpy_htod_async=upload,
        memcpy_dtoh_async=download,
    )


class Status(int):
    name = "CUDA_ERROR_INVALID_VALUE"


def driver(gpu: Gpu) -> SimpleNamespace:
    """`cuda.bindings.driver`."""

    def begin(stream: int, mode: Any) -> tuple[Status]:
        gpu.recording = []
        return (Status(0),)

    def end(stream: int) -> tuple[Status, Any]:
        recorded, gpu.recording = gpu.recording, None
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
            work()
        return (Status(0),)

    def destroy(graph: int) -> tuple[Status]:
        gpu.diary.append("destroy graph")
        return (Status(0 if gpu.graphs.pop(graph, None) is not None else 1),)

    return SimpleNamespace(
        CUstream=int,
        CUstreamCaptureMode=SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1),
        cuStreamBeginCapture=begin,
        cuStreamEndCapture=end,
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
    def __init__(self, gpu: Gpu) -> None:
        super().__init__(gpu)
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.gpu.diary.append(f"profile {profile}")
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.gpu.diary.append(f"bind {name}")
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        size, x, y = int(np.prod(self.shape)) * 4, self.addresses["x"], self.addresses["y"]

        def work() -> None:
            assert size <= min(self.gpu.memory[x].size, self.gpu.memory[y].size), "runs over the end of a buffer"
            self.gpu.memory[y][:size] = (2 * self.gpu.memory[x][:size].view(np.float32)).view(np.uint8)

        if self.gpu.recording is not None:
            self.gpu.recording.append(work)
        else:
            self.gpu.diary.append(f"execute on {stream}")
            work()
        return not self.gpu.fails


class Cache(Mortal):
    def deserialize(self, data: bytes) -> bool:
        self.gpu.diary.append(f"cache of {len(data)} bytes")
        return True

    def serialize(self) -> bytes:
        return b"compiled kernels"


class Engine(Mortal):
    num_io_tensors = 2

    def get_tensor_name(self, index: int) -> str:
        return "xy"[index]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name == "x" else "output"

    def get_tensor_shape(self, name: str) -> tuple[int, int]:
        return (-1, 4)

    def get_tensor_dtype(self, name: str) -> str:
        return "float32"

    def get_tensor_profile_shape(self, name: str, profile: int) -> Any:
        return LIMITS[profile]

    def create_execution_context(self, *config: Any) -> Context:
        self.gpu.diary.append(f"context with {len(config)} config")
        return Context(self.gpu)

    def create_runtime_config(self) -> Any:
        gpu = self.gpu  # the configuration holds nothing else of the engine
        return SimpleNamespace(
            create_runtime_cache=lambda: Cache(gpu), set_runtime_cache=lambda cache: gpu.diary.append("cache set")
        )


class Runtime(Mortal):
    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        return None if plan == b"bad" else Engine(self.gpu)


def tensorrt(gpu: Gpu) -> SimpleNamespace:
    """The part of TensorRT's API that runs engines."""
    return SimpleNamespace(
        Runtime=lambda log: Runtime(gpu),
        TensorIOMode=SimpleNamespace(INPUT="input", OUTPUT="output"),
        DataType=SimpleNamespace(BF16="bfloat16", FLOAT="float32"),
        nptype=np.dtype,
    )
