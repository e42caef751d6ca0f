"""Lesson 14: profiles of real engines, measured where a GPU is, else recalled; and records of what else needs one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from trtkit.bench.record import Record, Records, load, measure_or_recall
from trtkit.bench.roofline import Machine, measure_gpu
from trtkit.engine.engine import Engine
from trtkit.engine.profile import LayerTime, Profile

if TYPE_CHECKING:
    from trtkit.model import Model

STARTS = {"without": "no cache", "with": "a good cache", "stale": "a stale one", "corrupt": "a corrupt one"}
STEPS = {"read": "read the file", "open": "open it", "first_run": "first run"}


@cache
def resnet50() -> Engine:
    """ResNet-50 in FP16 for one picture, as lesson 00 and the records have it: optimised, rewritten, cast, built.

    The weights are random: neither the layers nor their times depend on them.
    """
    import torch

    import trtkit
    from trtkit.course import nets

    torch.manual_seed(0)
    model = trtkit.load(nets.resnet50(), torch.rand(1, 3, 224, 224), name="resnet50")
    fixed = trtkit.fix_shapes(model, {model.inputs[0].name: (1, 3, 224, 224)})
    fast = trtkit.low_latency(trtkit.optimize(fixed, level=3))
    return trtkit.build(trtkit.autocast(fast, "fp16", io="low"), verify=False)


def profiled(network: str, batch: int = 1, engine: Engine | None = None) -> Profile:
    """Where a call's time goes: of `engine` on the GPU that is here, else of the network's on the record's GPU.

    Raises RecordError when it can be neither measured nor recalled.
    """
    live = engine if engine is not None and engine.runs_here else None

    def measured() -> Profile:
        import torch

        from trtkit.bench.profiler import profile

        assert live is not None and live.model is not None
        inputs = {
            info.name: torch.zeros([batch, *map(int, info.shape[1:])], dtype=getattr(torch, info.dtype.name)).cuda()
            for info in live.model.inputs
        }
        return profile(live, inputs)

    key = f"profile-{network}-fp16-b{batch}/trtkit"
    found = measure_or_recall(key, measured if live else None, needs="tensorrt-gpu")
    return Profile.from_facts(found.extra, found.source) if isinstance(found, Record) else found


def peaks() -> tuple[Machine, str]:
    """The roof in FP16, of the GPU that is here or of the record's, and where it is from."""
    found = measure_or_recall("peaks/fp16", measure_gpu, needs="gpu")
    if isinstance(found, Machine):
        return found, "measured here"
    return Machine(found.device, found.extra["flops"], found.extra["bytes"]), found.source


def cold_starts() -> Records:
    """A process from an engine file to its first result, with and without a runtime cache."""
    found: Records = load("cold-start")
    return found


def start_table(found: Records) -> str:
    """Milliseconds of each step of each kind of start.

    >>> print(start_table(Records("cold-start", {})))
    start           read the file     open it   first run         all
    """
    head = f"{'start':14}" + "".join(
        f"{said:>14}"[:14] if i == 0 else f"{said:>12}" for i, said in enumerate(STEPS.values())
    )
    rows = [f"{head}{'all':>12}"]
    for kind, said in STARTS.items():
        if kind in found:
            steps = found[kind].extra["ms"]
            cells = "".join(f"{steps[step]:{14 if i == 0 else 12}.1f}" for i, step in enumerate(STEPS))
            rows.append(f"{said:14}{cells}{found[kind].median_ms:12.1f}")
    return "\n".join(rows)


def told(profile: Profile, count: int = 3) -> str:
    """The layers furthest from their roofline, each with the likeliest reason."""
    return "\n".join(
        f"{layer.us:6.1f} µs, {layer.of_roofline:4.0%} of the roofline: {layer.cost.label}, in "
        f"{layer.cost.module or 'the input'}\n    {profile.why(layer)}"
        for layer in profile.furthest(count)
    )


def energy(profiles: Sequence[Profile]) -> dict[str, dict[str, Any]]:
    """Watts, clocks and millijoules for one sample, by the profile's name; those without sensors are left out."""
    found = {}
    for profile in profiles:
        power = profile.facts.get("power") or {}
        if "mj_per_call" in power:
            found[profile.name] = {**power, "mj_per_sample": power["mj_per_call"] / profile.facts["batch"]}
    return found


def kinds(layers: Sequence[LayerTime]) -> dict[str, float]:
    """Microseconds by what a layer leads with: a product, a normalisation, or neither; of TensorRT's own, "own"."""
    sums: dict[str, float] = {}
    for layer in layers:
        ops = layer.cost.op_types
        if not ops:
            kind = "TensorRT's own"
        elif any(op in ("Conv", "Gemm", "MatMul") for op in ops):
            kind = "products"
        else:
            kind = "all others"
        sums[kind] = sums.get(kind, 0.0) + layer.us
    return sums


def refits() -> Records:
    """ResNet-50 built plainly, refittable, stripped and both: bytes, seconds, and the time of a call."""
    found: Records = load("refit-resnet50")
    return found


def refit_table(found: Records) -> str:
    """A line for each way of building."""
    rows = [f"{'built':21}{'MB':>8}{'build s':>9}{'refit s':>9}{'MB then':>9}{'µs a call':>11}{'error':>10}"]
    for way, record in found.items():
        facts = record.extra
        refit = (f"{facts['refit_s']:9.2f}{facts['refitted_bytes'] / 1e6:9.2f}" if "refit_s" in facts
                 else f"{'–':>9}{'–':>9}")  # fmt: skip
        rows.append(f"{way:21}{facts['bytes'] / 1e6:8.2f}{facts['build_s']:9.2f}{refit}{1e3 * record.median_ms:11.1f}"
                    f"{facts['error']:10.1e}")  # fmt: skip
    return "\n".join(rows)


def targets(model: Model, choices: Sequence[Sequence[tuple[int, int]]]) -> dict[str, Engine]:
    """The same network built for some GPUs each time, by their compute capabilities as words."""
    import trtkit

    shapes = {info.name: (1, *map(int, info.shape[1:])) for info in model.inputs}
    return {
        " and ".join(f"{major}.{minor}" for major, minor in choice) or "all": trtkit.build(
            model, shapes, compute_capabilities=list(choice), verify=False
        )
        for choice in choices
    }
