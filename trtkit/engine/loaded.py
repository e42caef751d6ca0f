"""An engine that TensorRT has read: what its contexts, of one session or of several, have in common."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from trtkit.engine.cache import RuntimeCache
from trtkit.engine.cuda import check, current, device_memory, driver
from trtkit.engine.trt import trt
from trtkit.errors import EngineError, ModelError
from trtkit.model import TensorInfo

Shapes = Mapping[str, tuple[int, ...]]
_ALWAYS: AbstractContextManager[None] = nullcontext()  # nobody to wait for: every context has memory of its own


class LoadedEngine:
    """One deserialised `ICudaEngine`: its weights lie on the GPU once, however many contexts run it.

    Args:
        plan: the serialised engine.
        cache_dir: where TensorRT-RTX keeps the kernels it compiled for this GPU; by default below the user's cache
        folder.
        share_memory: contexts have no scratch memory of their own and take turns with one, see `turn`.

    Attributes:
        lock: held while a context is made or told shapes, and while its first run is recorded: not everything in
        TensorRT may happen in two threads at once.
    """

    def __init__(self, plan: bytes, name: str, cache_dir: str | Path | None = None, share_memory: bool = False) -> None:
        from trtkit.engine.child import log

        self._log = log()
        self.name = name
        self.lock = threading.RLock()
        self._cache: RuntimeCache | None = None
        self._scratch: _Scratch | None = None
        self._runtime: Any = trt.Runtime(self._log)
        self.engine: Any = self._runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            raise EngineError(f"TensorRT cannot open the engine of {name!r}: {self.words()}")
        try:
            self._cache = RuntimeCache.open(self.engine, plan, cache_dir)
            with current():
                self._scratch = _Scratch(_scratch_bytes(self.engine)) if share_memory else None
            self._describe()
        except BaseException:
            self.close()
            raise

    def _describe(self) -> None:
        tensors = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        is_input = {t: self.engine.get_tensor_mode(t) == trt.TensorIOMode.INPUT for t in tensors}
        for tensor in tensors:
            if self.engine.get_tensor_location(tensor) == trt.TensorLocation.HOST:
                raise EngineError(
                    f"{tensor!r} of {self.name!r} is a shape tensor, which TensorRT wants in the host's memory; that "
                    "is not supported. Run this engine with open('cpu')."
                )
        self.inputs = tuple(self._info(t) for t in tensors if is_input[t])
        self.outputs = tuple(self._info(t) for t in tensors if not is_input[t])
        self.limits = [
            {info.name: self.engine.get_tensor_profile_shape(info.name, profile) for info in self.inputs}
            for profile in range(self.engine.num_optimization_profiles)
        ]

    def _info(self, name: str) -> TensorInfo:
        shape = tuple(d if d >= 0 else f"{name}_dim{i}" for i, d in enumerate(self.engine.get_tensor_shape(name)))
        return TensorInfo(name, shape, _numpy_dtype(self.engine.get_tensor_dtype(name)))

    def words(self) -> str:
        """What TensorRT said last."""
        return "; ".join(self._log.errors[-3:]) or "it gave no reason"

    # Profiles

    def profile_for(self, shapes: Shapes, fixed: int | None = None) -> int:
        """The profile that takes these shapes (`fixed` alone, if given); of several the one tuned nearest to them.

        Raises:
            ModelError: none takes them.
        """
        able = range(len(self.limits)) if fixed is None else (fixed,)
        fitting = [p for p in able if all(_inside(shape, self.limits[p][name]) for name, shape in shapes.items())]
        if not fitting:
            raise self._outside(shapes, able)
        return min(fitting, key=lambda p: sum(_distance(s, self.limits[p][n][1]) for n, s in shapes.items()))

    def _outside(self, shapes: Shapes, able: range | tuple[int]) -> ModelError:
        name = next((n for n, s in shapes.items() if not any(_inside(s, self.limits[p][n]) for p in able)), None)
        name = name or next(iter(shapes))
        limits = [self.limits[profile][name] for profile in able]
        ranges = "; ".join(f"{tuple(least)} to {tuple(most)}" for least, _, most in limits)
        return ModelError(
            f"Input {name!r} of {self.name!r}: the shape {tuple(shapes[name])} is outside the engine's profile, "
            f"{ranges}. Build with `shapes` that include it."
        )

    # Contexts

    def context(self, profile: int, stream: int) -> Context:
        """A new execution context for one profile.

        Raises:
            EngineError: TensorRT cannot make one.
        """
        with self.lock:
            made = self._new_context()
            if made is None:
                raise EngineError(f"TensorRT cannot make an execution context for {self.name!r}: {self.words()}")
            if self._scratch:
                made.set_device_memory(int(self._scratch.memory), self._scratch.size)
            if profile and not made.set_optimization_profile_async(profile, stream):
                raise EngineError(f"TensorRT cannot use profile {profile} of {self.name!r}: {self.words()}")
            return Context(made, self)

    def _new_context(self) -> Any:
        if not self._cache:
            if self._scratch:
                return self.engine.create_execution_context_without_device_memory()
            return self.engine.create_execution_context()
        config = self._cache.config
        if self._scratch:
            config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        return self.engine.create_execution_context(config)

    def turn(self, stream: int) -> AbstractContextManager[None]:
        """What is put on the stream inside has the shared scratch memory for itself."""
        return self._scratch.turn(stream) if self._scratch else _ALWAYS

    # The end

    def save(self) -> None:
        """Write what was compiled to the runtime cache; before the contexts are gone."""
        if self._cache:
            self._cache.save()

    def close(self) -> None:
        """Let go of the engine, in this order: TensorRT keeps bare pointers.

        A context whose runtime cache was freed before it computes wrong numbers or crashes the process.
        """
        scratch, self._scratch = self._scratch, None
        try:
            if scratch:
                with current():
                    scratch.free()
        finally:
            self.engine = None
            self._cache = None
            self._runtime = None


class Context:
    """An execution context of one profile, and whose shapes and addresses it holds now."""

    def __init__(self, made: Any, loaded: LoadedEngine) -> None:
        self.trt, self.loaded = made, loaded
        self.bound: Any = None

    def set_shapes(self, shapes: Shapes) -> dict[str, tuple[int, ...]]:
        """Tell TensorRT the inputs' shapes; returns those of the outputs, -1 where the data will decide.

        Raises:
            EngineError: TensorRT refuses a shape.
        """
        self.bound = None
        for name, shape in shapes.items():
            if not self.trt.set_input_shape(name, tuple(shape)):
                raise EngineError(f"TensorRT refuses the shape {tuple(shape)} for {name!r}: {self.loaded.words()}")
        return {info.name: tuple(self.trt.get_tensor_shape(info.name)) for info in self.loaded.outputs}

    def enqueue(self, stream: int) -> bool:
        return bool(self.trt.execute_async_v3(stream))


class _Scratch:
    """Memory for what an engine computes on its way, shared by contexts of which one runs at a time."""

    def __init__(self, size: int) -> None:
        self.size = max(256, size)
        self.memory = device_memory(self.size)
        self.done = check(driver.cuEventCreate(driver.CUevent_flags.CU_EVENT_DISABLE_TIMING.value))
        self.lock = threading.RLock()

    @contextmanager
    def turn(self, stream: int) -> Iterator[None]:
        """Streams wait for each other on the GPU; the lock only keeps two threads from queueing at once."""
        with self.lock:
            check(driver.cuStreamWaitEvent(stream, self.done, 0))
            try:
                yield
            finally:
                check(driver.cuEventRecord(self.done, stream))

    def free(self) -> None:
        self.memory.free()
        check(driver.cuEventDestroy(self.done))


def _scratch_bytes(engine: Any) -> int:
    return int(engine.device_memory_size_v2 if hasattr(engine, "device_memory_size_v2") else engine.device_memory_size)


def _inside(shape: tuple[int, ...], three: Any) -> bool:
    least, _, most = three
    return len(shape) == len(least) and all(a <= d <= b for a, d, b in zip(least, shape, most, strict=True))


def _distance(shape: tuple[int, ...], best: Any) -> float:
    return sum(abs(math.log(d / b)) for d, b in zip(shape, best, strict=True) if d > 0 and b > 0)


def _numpy_dtype(dtype: trt.DataType) -> np.dtype:
    if dtype == trt.DataType.BF16:
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(trt.nptype(dtype))
