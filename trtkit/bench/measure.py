"""Measuring how long a call takes: warmed up, inputs varied, the median of many runs.

On the CPU the clock is `time.perf_counter`; on the GPU it is a pair of CUDA events on the stream the work runs on.
Before every timed call the stream is idle, so that a sample is the latency of one call (its launch included) and
not the throughput of a full queue. Everybody who is compared with everybody is measured by the same function.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trtkit.errors import MissingError, extra

Clock = Callable[[Callable[[], Any]], float]  # times one call and returns milliseconds


@dataclass(frozen=True)
class Measurement:
    """How long one call takes: milliseconds, with the spread and the number of samples behind the median.

    >>> Measurement.from_samples([1.0, 2.0, 3.0])
    Measurement(2 ms, p10 1.2, p90 2.8, 3 samples on cpu, measured here)
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    count: int
    device: str = "cpu"
    source: str = "measured here"
    samples_ms: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False, compare=False)

    @classmethod
    def from_samples(cls, samples_ms: Sequence[float] | np.ndarray, device: str = "cpu") -> Measurement:
        """Summarise single timings in milliseconds, shape (runs,). Raises ValueError when there is none."""
        samples = np.asarray(samples_ms, dtype=np.float64)
        if samples.size == 0:
            raise ValueError("a measurement needs at least one sample, got none")
        p10, median, p90 = np.percentile(samples, (10, 50, 90))
        return cls(float(median), float(p10), float(p90), samples.size, device, samples_ms=samples)

    @property
    def recalled(self) -> bool:
        """False: these figures come from this machine (a recalled `Record` says True)."""
        return False

    def __repr__(self) -> str:
        spread = f"p10 {self.p10_ms:.4g}, p90 {self.p90_ms:.4g}, {self.count} samples on {self.device}"
        return f"Measurement({self.median_ms:.4g} ms, {spread}, {self.source})"


def measure(
    fn: Callable[..., Any],
    *,
    inputs: Sequence[Any] | None = None,
    warmup: int = 10,
    min_runs: int = 50,
    min_seconds: float = 0.2,
    max_runs: int = 20_000,
    device: str = "cpu",
    stream: Any = None,
    sync: Callable[[], Any] | None = None,
) -> Measurement:
    """Time `fn` call by call until there are `min_runs` samples and `min_seconds` have gone by.

    `inputs` is a list of input sets used in turn, one set a call: `fn(inputs[i])`. Without it the call is `fn()`.
    `device="cuda"` times with CUDA events on `stream` (a PyCUDA or torch stream; torch's current stream when None),
    through torch when torch is loaded and through PyCUDA otherwise. `sync` is called inside the timed region: use it
    for work on some other device that returns before it is done.

    Raises ValueError for an empty list of inputs, MissingError when there is no GPU to time on.

    >>> result = measure(sorted, inputs=[[3, 1, 2], [2, 1]], warmup=1, min_runs=50, min_seconds=0)
    >>> result.count, result.p10_ms <= result.median_ms <= result.p90_ms
    (50, True)
    """
    call = _rotating_call(fn, inputs, sync)
    clock = _clock(device, stream)
    for _ in range(warmup):
        clock(call)
    samples: list[float] = []
    begin = time.perf_counter()
    while len(samples) < min_runs or (time.perf_counter() - begin < min_seconds and len(samples) < max_runs):
        samples.append(clock(call))
    return Measurement.from_samples(samples, device)


def _rotating_call(
    fn: Callable[..., Any], inputs: Sequence[Any] | None, sync: Callable[[], Any] | None
) -> Callable[[], Any]:
    """`fn` as a call without arguments; every call takes the next input set, so that no cache sees only one."""
    if inputs is None:
        bare = fn
    else:
        if len(inputs) == 0:
            raise ValueError("measure(inputs=[]) has nothing to feed: give at least one input set, or None")
        turn = itertools.cycle(inputs)
        bare = lambda: fn(next(turn))  # noqa: E731 - the shortest closure costs the least inside the timed region
    if sync is None:
        return bare

    def synced() -> None:
        bare()
        sync()

    return synced


def _clock(device: str, stream: Any) -> Clock:
    if device == "cpu":
        return _cpu_clock
    if not device.startswith("cuda"):
        raise ValueError(f"measure(device={device!r}): the device is 'cpu' or 'cuda'")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return _torch_clock(torch, stream)
    return _pycuda_clock(stream)


def _cpu_clock(call: Callable[[], Any]) -> float:
    begin = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - begin) / 1e6


def _torch_clock(torch: Any, stream: Any) -> Clock:
    """Torch's events, on torch's current stream or on a stream that somebody else made."""
    if stream is None:
        target = torch.cuda.current_stream()
    elif isinstance(stream, torch.cuda.Stream):
        target = stream
    else:
        target = torch.cuda.ExternalStream(int(stream.handle))
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def clock(call: Callable[[], Any]) -> float:
        torch.cuda.synchronize()
        with torch.cuda.stream(target):
            start.record(target)
            call()
            end.record(target)
        end.synchronize()
        return float(start.elapsed_time(end))

    return clock


def _pycuda_clock(stream: Any) -> Clock:
    """PyCUDA's events; makes the primary context current, the one that TensorRT and torch use too."""
    try:
        import pycuda.driver as cuda

        cuda.init()
        devices = cuda.Device.count()
    except Exception as error:  # PyCUDA raises its own kinds, depending on what is missing
        what = f"measure(device='cuda') needs a GPU and PyCUDA ({extra('gpu')})"
        raise MissingError(f"{what}: {error}") from error
    if devices == 0:
        raise MissingError("measure(device='cuda') needs a GPU and finds none; device='cpu' times on the CPU")
    import pycuda.autoprimaryctx  # noqa: F401 - retains the primary context for this process

    start, end = cuda.Event(), cuda.Event()

    def clock(call: Callable[[], Any]) -> float:
        cuda.Context.synchronize()
        start.record(stream)
        call()
        end.record(stream)
        end.synchronize()
        return float(start.time_till(end))

    return clock
