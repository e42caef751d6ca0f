"""Where the time of one call goes: each kernel of an engine, and the pause before it, as CUPTI sees them.

    python3 -m benchmarks.kernel_trace resnet50-fp16-b1                      # the graph for single requests
    python3 -m benchmarks.kernel_trace bert-base-fp16-b1 --form autocast     # the optimised one
    python3 -m benchmarks.kernel_trace bert-base-fp16-b1 --sessions 2        # the second session of the process

One line for each kernel of a call: microseconds from the end of those before it to its own end, microseconds it took
(more where it was let in early), its name; medians over the calls. CUPTI itself costs time, so the sum is longer than a
call is without it (`gpu_step1` measures that); what it is good for is the parts. Needs an NVIDIA GPU.
"""

from __future__ import annotations

import argparse

from benchmarks.contenders import Runner, session_call
from benchmarks.gpu_step1 import settings
from trtkit.bench.kernels import trace
from trtkit.bench.torch_peers import best_footing
from trtkit.engine.profile import KernelTime


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
    kernels: list[KernelTime] = []
    for number in range(options.sessions):
        with engine.open("cuda") as session:
            call = session_call(session, "cuda")
            for _ in range(50):
                call(tensor)
            if number == options.sessions - 1:
                kernels = trace(lambda: call(tensor))  # noqa: B023 - run before the next round
    for kernel in kernels:
        print(f"{kernel.charged:7.2f} {kernel.duration:7.2f}  {kernel.name[:100]}")
    busy, length = sum(k.duration for k in kernels), sum(k.charged for k in kernels)
    print(f"{len(kernels)} kernels: {busy:.1f} us, from the first one's start to the last one's end {length:.1f} us")


if __name__ == "__main__":
    main()
