"""profile: run an engine on the GPU and see which layer takes how long, at which clocks and watts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import TYPE_CHECKING, Any

from trtkit.bench.kernels import trace
from trtkit.bench.measure import measure
from trtkit.bench.power import Watch
from trtkit.bench.roofline import Machine, measure_gpu
from trtkit.engine.alignment import lay_over
from trtkit.engine.engine import Engine
from trtkit.engine.profile import Profile, layer_costs
from trtkit.engine.session import Session
from trtkit.errors import EngineError, MissingError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

Inputs = Mapping[str, "torch.Tensor"]
_WATCHED_S = 2.0  # the energy counter moves every tenth of a second or so


def profile(engine: Engine, inputs: Inputs, machine: Machine | None = None, *, power: bool = True) -> Profile:
    """Where the time of one call goes, layer by layer, with the roofline of each.

    The latency is measured first, without any profiler and before anything else happens on the GPU, since other work
    in the same process may slow down every later call (benchmarks/README.md). Then CUPTI times each kernel inside the
    replayed CUDA graph; kernels overlap, so each is charged from the end of those before it to its own end: that adds
    up to the call. TensorRT's own `IProfiler` cannot look into a graph: it times layers launched one by one, which is
    longer (`layer_events`).

    Args:
        inputs: CUDA tensors by name.
        machine: the roof to hold layers against; measured now by default (`measure_gpu`).
        power: repeat the call for two seconds, for watts, clocks and joules; left out where NVML is missing.

    Raises:
        EngineError: the engine cannot run here, or its model was not given.
        MissingError: PyTorch or a GPU is missing.
    """
    if not engine.runs_here:
        raise EngineError(
            f"The engine of {engine.manifest['model']!r} cannot be profiled here: {engine.why_not_here}. "
            "layer_costs(engine) needs no GPU; records keep profiles of others (Profile.from_facts)."
        )
    import torch

    name, shape = next((name, tuple(tensor.shape)) for name, tensor in inputs.items())
    costs = layer_costs(engine, shape[0], _dims(engine, inputs))
    with engine.open("cuda") as session:
        call = _call(session, inputs)
        latency = measure(call, device="cuda", stream=getattr(session, "stream", None), min_seconds=0.4)
        kernels = trace(call)
        after = measure(call, device="cuda", stream=getattr(session, "stream", None), min_seconds=0.1)
        facts = {"batch": shape[0], "kernels": len(kernels), **(_power(call) if power else {})}
    facts["busy_us"] = round(sum(kernel.duration for kernel in kernels), 2)
    facts["samples"], facts["after_us"] = latency.count, round(1e3 * after.median_ms, 2)
    machine = machine or measure_gpu("fp32" if engine.manifest["precision"] == "fp32" else "fp16")  # last: see above
    facts["p10_us"], facts["p90_us"] = round(1e3 * latency.p10_ms, 2), round(1e3 * latency.p90_ms, 2)
    return Profile(
        f"{engine.manifest['model']}, {engine.manifest['precision']}, {name} {shape}",
        tuple(lay_over(kernels, costs, machine.flops, machine.bytes)),
        1e3 * latency.median_ms,
        machine.name,
        machine.flops,
        machine.bytes,
        torch.cuda.get_device_properties(0).multi_processor_count,
        facts,
    )


def _dims(engine: Engine, inputs: Inputs) -> dict[str, int]:
    """The sizes of the changeable dimensions, by name."""
    assert engine.model is not None  # layer_costs says it better
    found: dict[str, int] = {}
    for info in engine.model.inputs:
        for dim, size in zip(info.shape, inputs[info.name].shape, strict=True):
            if isinstance(dim, str):
                found[dim] = int(size)
    return found


def _call(session: Session, inputs: Inputs) -> Callable[[], Any]:
    given = dict(inputs)
    for _ in range(20):
        session.run(given)
    return lambda: session.run(given)


def _power(call: Callable[[], Any]) -> dict[str, Any]:
    """Watts, clocks and joules a call, called again and again; empty where NVML is missing."""
    import torch

    try:
        watch = Watch()
    except MissingError as error:
        log.warning("%s Power and clocks are left out.", error)
        return {}
    calls, begin = 0, time.perf_counter()
    with watch:
        while time.perf_counter() - begin < _WATCHED_S:
            for _ in range(20):
                call()
            torch.cuda.synchronize()
            calls += 20
    return {"power": watch.facts(calls)}


def layer_events(engine: Engine, inputs: Inputs, runs: int = 20) -> dict[str, float]:
    """Microseconds of each layer by TensorRT's `IProfiler`, medians over `runs`, by the layer's name.

    Layers are launched one by one with an event after each, so that the sum is longer than a call that replays a CUDA
    graph. Needs no PyTorch profiler, and shows where a layer's time goes when kernels' names say nothing.

    Raises EngineError when the engine cannot run here.
    """
    from trtkit.engine.trt import trt

    times: dict[str, list[float]] = {}

    class Recorder(trt.IProfiler):
        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times.setdefault(layer_name, []).append(1e3 * ms)

    with engine.open("cuda", cuda_graph=False) as session:
        call = _call(session, inputs)
        recorder = Recorder()
        session.context.profiler = recorder  # type: ignore[attr-defined]
        for _ in range(runs + 2):
            call()
        session.context.profiler = None  # type: ignore[attr-defined]
    return {name: round(median(found[2:] or found), 3) for name, found in times.items()}
