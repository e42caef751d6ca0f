"""The kernels of a call as the GPU itself timed them: CUPTI, through PyTorch's profiler, sees inside a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

from trtkit.engine.profile import KernelTime
from trtkit.errors import EngineError


class Span(NamedTuple):
    """One kernel of one call: when it began and ended, microseconds."""

    name: str
    begin: float
    end: float


def trace(call: Callable[[], Any], calls: int = 20, skip: int = 2) -> list[KernelTime]:
    """The kernels of one call in the order they begin, medians over `calls` of them; the first `skip` do not count.

    The GPU is waited for after each call. CUPTI costs time of its own, mostly between kernels.

    Raises:
        EngineError: the calls did not all run the same number of kernels.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(calls):
            call()
            torch.cuda.synchronize()
    spans = [
        Span(event.name, event.time_range.start, event.time_range.end)
        for event in profiler.events() or []
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    return summed_up(spans, calls, skip)


def summed_up(spans: list[Span], calls: int, skip: int = 0) -> list[KernelTime]:
    """Medians over the calls of the kernels in each.

    >>> call = [Span("a", 0, 4), Span("b", 3, 6)]  # b begins before a has ended
    >>> for kernel in summed_up(call, calls=1):
    ...     print(kernel)
    KernelTime(name='a', charged=4, duration=4)
    KernelTime(name='b', charged=2, duration=3)
    """
    ran = sorted(spans, key=lambda span: span.begin)
    if not ran or len(ran) % calls:
        raise EngineError(f"{len(ran)} kernels in {calls} calls: they were not all alike, or CUPTI lost some.")
    count = len(ran) // calls
    rows = [ran[begin : begin + count] for begin in range(skip * count, len(ran), count)]
    charged = [charged_times(row) for row in rows]
    return [
        KernelTime(
            rows[0][place].name,
            median(times[place] for times in charged),
            median(row[place].end - row[place].begin for row in rows),
        )
        for place in range(count)
    ]


def charged_times(spans: Sequence[Span]) -> list[float]:
    """What each kernel of a call is charged: from the end of all before it to its own end, so that the sum is the
    length of the call; 0 for one that ended while another still ran.

    >>> charged_times([Span("a", 0, 4), Span("b", 3, 6), Span("c", 4, 5)])
    [4, 2, 0]
    """
    ended, times = spans[0].begin, []
    for span in spans:
        times.append(max(0, span.end - ended))
        ended = max(ended, span.end)
    return times
