"""Where the time of one call goes: each kernel of an engine, and the pause before it, as CUPTI sees them.

    python3 -m benchmarks.kernel_trace resnet50-fp16-b1                      # the graph for single requests
    python3 -m benchmarks.kernel_trace bert-base-fp16-b1 --form autocast     # the optimised one
    python3 -m benchmarks.kernel_trace bert-base-fp16-b1 --sessions 2        # the second session of the process

One line for each kernel of a call: microseconds from the end of the kernel before it (negative where it was let in
early), microseconds it took, its name; medians over the calls. CUPTI itself costs time, so the sum is longer than a
call is without it (`gpu_step1` measures that); what it is good for is the parts. Needs an NVIDIA GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import torch

from benchmarks.contenders import Runner, session_call
from benchmarks.gpu_step1 import settings
from trtkit.bench.torch_peers import best_footing

CALLS = 20


class Kernel(NamedTuple):
    """One kernel of a call; microseconds."""

    pause: float
    duration: float
    name: str


def trace(call: Callable[[], Any], calls: int = CALLS) -> list[Kernel]:
    """The kernels of one call, medians over `calls` of them, each waited for; the first two do not count.

    Raises RuntimeError when the calls did not all run the same number of kernels.
    """
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(calls):
            call()
            torch.cuda.synchronize()
    events = profiler.events() or []
    ran = sorted(
        (e for e in events if e.device_type == torch.autograd.DeviceType.CUDA), key=lambda e: e.time_range.start
    )
    if not ran or len(ran) % calls:
        raise RuntimeError(f"{len(ran)} kernels in {calls} calls: they were not all alike, or CUPTI lost some.")
    count = len(ran) // calls
    rows = [ran[begin : begin + count] for begin in range(2 * count, len(ran), count)]
    return [
        _kernel([row[place] for row in rows], [row[place - 1] for row in rows] if place else [])
        for place in range(count)
    ]


def _kernel(ran: list[Any], before: list[Any]) -> Kernel:
    pauses = [now.time_range.start - last.time_range.end for now, last in zip(ran, before, strict=False)]
    return Kernel(median(pauses or [0.0]), median(e.time_range.end - e.time_range.start for e in ran), ran[0].name)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.kernel_trace", description=__doc__.splitlines()[0])
    parser.add_argument("setting", help="NETWORK-PRECISION-bBATCH, as gpu_step1 names them")
    parser.add_argument("--form", default="low-latency", choices=("low-latency", "autocast", "fp32", "half"))
    parser.add_argument("--sessions", type=int, default=1, help="trace the last of so many sessions, one after another")
    options = parser.parse_args(argv)
    best_footing()
    setting = next(settings([options.setting], quick=False))
    engine = Runner("cuda", "", print).build(setting, options.form)
    low = engine.model.inputs[0].dtype.name != "float32"
    (tensor,) = setting.network.inputs(setting.batch, 1, "fp16" if low else "fp32", "", "cuda")
    kernels: list[Kernel] = []
    for number in range(options.sessions):
        with engine.open("cuda") as session:
            call = session_call(session, "cuda")
            for _ in range(50):
                call(tensor)
            if number == options.sessions - 1:
                kernels = trace(lambda: call(tensor))  # noqa: B023 - run before the next round
    for kernel in kernels:
        print(f"{kernel.pause:7.2f} {kernel.duration:7.2f}  {kernel.name[:100]}")
    busy, idle = sum(k.duration for k in kernels), sum(k.pause for k in kernels)
    print(f"{len(kernels)} kernels: {busy:.1f} us, pauses {idle:.1f} us")


if __name__ == "__main__":
    main()
