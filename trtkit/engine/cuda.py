"""The one place that imports PyCUDA and the driver's bindings, and what every user of them needs."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np

from trtkit.engine.closing import close_all
from trtkit.errors import EngineError, MissingError, extra

try:
    import pycuda.driver as cuda
    from cuda.bindings import driver  # noqa: F401  (others take it from here)

    if threading.current_thread() is threading.main_thread():
        import pycuda.autoprimaryctx as _primary  # the context PyTorch uses; autoinit would make a second one

        PRIMARY = _primary.context
    else:  # there it would stay on the thread's stack, and PyCUDA ends the process when such a thread ends
        cuda.init()
        PRIMARY = cuda.Device(0).retain_primary_context()
except ImportError as error:
    raise MissingError(
        f"Running an engine on the GPU needs PyCUDA and cuda-bindings ({error}): {extra('gpu')}. "
        "open('cpu') runs its graph without them."
    ) from error

_SPLIT_BYTES = 2 << 20  # below that, waking threads takes longer than they gain
_COPIERS = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
NON_BLOCKING = 1  # a stream that does not wait for the default stream, nor that one for it (CU_STREAM_NON_BLOCKING)

atexit.register(close_all)  # once more: what is registered last runs first, and PyCUDA lets its context go at exit


@contextlib.contextmanager
def current() -> Iterator[None]:
    """Make the primary context current in this thread for a while, unless one is: PyCUDA asks for it everywhere."""
    if cuda.Context.get_current() is not None:
        yield
        return
    PRIMARY.push()
    try:
        yield
    finally:
        cuda.Context.pop()


def check(result: tuple[Any, ...]) -> Any:
    """The value of a CUDA driver call, or EngineError with the driver's name for what went wrong."""
    status, *values = result
    if int(status) != 0:
        raise EngineError(f"CUDA: {status.name}")
    return values[0] if values else None


def device_memory(size: int) -> Any:
    """So many bytes on the GPU. Raises EngineError where there is no room for them."""
    try:
        return cuda.mem_alloc(size)
    except cuda.MemoryError as error:
        free, total = cuda.mem_get_info()
        raise EngineError(
            f"The GPU has no room for another {size:,} bytes: {free:,} of {total:,} are free. Run smaller batches, "
            "close other sessions, or give them fewer kept_shapes."
        ) from error


def pinned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array in page-locked memory, from which copies to the GPU run by themselves."""
    # made as bytes and then viewed: PyCUDA does not know bfloat16
    raw: np.ndarray = cuda.pagelocked_empty(max(1, int(np.prod(shape)) * dtype.itemsize), np.uint8)
    return raw[: int(np.prod(shape)) * dtype.itemsize].view(dtype).reshape(shape)


def stage(to: np.ndarray, array: np.ndarray) -> None:
    """Copy a contiguous array into pinned memory, a large one in several threads: one core is slower than the bus."""
    if array.nbytes >= _SPLIT_BYTES and _COPIERS > 1:
        target, source = as_bytes(to), as_bytes(array)
        step = -(-source.size // _COPIERS)
        parts = [slice(start, start + step) for start in range(0, source.size, step)]
        with contextlib.suppress(RuntimeError):  # the interpreter is ending: no thread is started any more
            list(_copiers().map(lambda part: np.copyto(target[part], source[part]), parts))
            return
    np.copyto(to, array)


@cache
def _copiers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_COPIERS, thread_name_prefix="copying to pinned memory")


def as_bytes(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)
